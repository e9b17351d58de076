"""A lens and the Hugging Face model behind it: adapters, offloaded weights, hooks of its own, weights changed in place.

Every number here is the fault's own: what the same calls gave before it was mended stands in the docstrings.
"""

from collections.abc import Callable

import pytest
import torch
from models import FAMILIES, make, tokens

import hybridlens as hl
from hybridlens.errors import InputError

QUESTION = "What is the best thing to do in Lima?"
RESULT = "blocks.6.attn.hook_result"


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def rounding(scale: torch.Tensor, depth: int = 64) -> float:
    """Rounding of float32 values of this size through so many roundings of their size."""
    return depth * torch.finfo(torch.float32).eps * max(1.0, float(scale.abs().max()))


def silent(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return tensor * 0


def adapted(lens: hl.HybridLens) -> torch.nn.Module:
    """The lens's model with random LoRA adapters on its projections."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj", "in_proj"], init_lora_weights=False)
    return peft.get_peft_model(lens.hf_model, config).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("name", "point"), [("tiny-jamba", RESULT), ("tiny-recurrentgemma", "blocks.5.attn.hook_result")]
)
def test_edits_of_offloaded_weights_count(name: str, point: str) -> None:
    """They were dropped, and the result came out on the meta device (TransformerLens #1280)."""
    from accelerate import cpu_offload

    lens = hl.load(name)
    plain = lens(QUESTION)
    edited = lens.run_with_hooks(QUESTION, [(point, silent)])
    assert distance(edited, plain) > 0.5
    cpu_offload(lens.hf_model, execution_device=torch.device("cpu"))
    assert torch.equal(lens.run_with_hooks(QUESTION, [(point, silent)]), edited)
    result = lens.run_with_cache(QUESTION, point)[1][point]
    assert result.device.type == "cpu"


def test_results_of_heads_include_an_adapter() -> None:
    """Their sum was 0.98 from what attention wrote, and an edit of 1e-6 moved the logits by 1.05 (PEFT #2274)."""
    lens = hl.load("tiny-jamba")
    adapted(lens)
    new = hl.HybridLens(lens.hf_model, lens.tokenizer)
    right, cache = new.run_with_cache(QUESTION)
    written = cache["attn_out", 6]
    assert distance(cache["result", 6].sum(2), written) <= rounding(written)
    nudged = new.run_with_hooks(QUESTION, [(RESULT, lambda x, hook: x + 1e-6)])
    assert distance(nudged, right) < 1e-2


def test_adapters_put_in_later_are_followed() -> None:
    """The lens gave neither the base's logits nor the adapted model's (2.74 and 5.72 away)."""
    lens = hl.load("tiny-jamba")
    ids = lens.to_tokens(QUESTION)
    base = lens(QUESTION)
    model = adapted(lens)
    theirs = model(torch.as_tensor(ids)).logits
    assert distance(theirs, base) > 1
    assert distance(lens(QUESTION), theirs) <= rounding(theirs)


def change_hook(lens: hl.HybridLens) -> None:
    lens.hf_model.model.layers[1].register_forward_hook(lambda module, given, out: out)


def change_norm_hook(lens: hl.HybridLens) -> None:
    lens.hf_model.model.layers[1].input_layernorm.register_forward_pre_hook(lambda module, given: None)


def change_embedding(lens: hl.HybridLens) -> None:
    lens.hf_model.resize_token_embeddings(lens.cfg.d_vocab + 8)


def change_norm(lens: hl.HybridLens) -> None:
    lens.hf_model.model.layers[1].input_layernorm = torch.nn.Identity()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (change_hook, r"a hook was put on model\.layers\.1 of the Hugging Face model"),
        (change_norm_hook, r"a hook was put on model\.layers\.1\.input_layernorm"),
        (change_embedding, r"the embedding has 61 rows now, and had 53 when the lens was made"),
        (change_norm, r"the norm input_layernorm was a JambaRMSNorm and is now a Identity"),
    ],
)
def test_what_cannot_be_followed_is_refused(change: Callable[[hl.HybridLens], None], line: str) -> None:
    """A hook on a decoder layer moved the library's logits by 23.8 and the lens's by 0."""
    lens = hl.HybridLens(make("jamba"))
    lens(tokens(1, 5))
    change(lens)
    with pytest.raises(InputError, match=line):
        lens(tokens(1, 5))


def test_hooks_on_what_the_lens_calls_are_heard() -> None:
    """A linear map and the experts are called as they are, so that a hook there does what it does in the library."""
    model = make("jamba")
    lens, ids = hl.HybridLens(model), tokens(1, 6)
    before = lens(ids)
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda module, given, out: out * 0)
    model.model.layers[1].feed_forward.experts.register_forward_hook(lambda module, given, out: out * 2)
    theirs = model(ids).logits
    assert distance(theirs, before) > 1e-2
    assert distance(lens(ids), theirs) <= rounding(theirs)


def test_an_adapter_on_the_step_size_is_left_out_as_the_library_does() -> None:
    """Jamba reads the weight of `dt_proj` past its module, so an adapter there does nothing; the lens was 2.6 away."""
    peft = pytest.importorskip("peft")
    lens, ids = hl.HybridLens(make("jamba")), tokens(1, 6)
    plain = lens(ids)
    torch.manual_seed(0)
    model = peft.get_peft_model(lens.hf_model, peft.LoraConfig(target_modules=["dt_proj"], init_lora_weights=False))
    theirs = model.eval()(ids).logits
    assert distance(theirs, plain) <= rounding(theirs)
    assert torch.equal(lens(ids), plain)


def test_states_belong_to_their_weights() -> None:
    """The logits were 13.8 away where a state of other weights of one architecture was gone on from (vLLM #30931)."""
    a, b = hl.load("tiny-jamba"), hl.load("tiny-jamba")
    state = a.prefill(QUESTION).state
    b.extend(state, [[5]])  # the same weights, another model
    for weight in b.hf_model.parameters():
        weight.mul_(1.2)
    line = "the state was made by other weights than the model has now"
    with pytest.raises(InputError, match=line):
        b.extend(state, [[5]])
    own = b.prefill(QUESTION).state
    b.extend(own, [[5]])
    with pytest.raises(InputError, match="states made by different weights"):
        hl.HybridState.cat([state, own])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_by_the_weights_as_they_are_however_they_were_changed(family: str) -> None:
    """torch does not count what is written through ``data``, as PEFT does when it merges: a prompt reads them anew."""
    lens = hl.HybridLens(make(family))
    weight = lens.hf_model.get_input_embeddings().weight
    with torch.no_grad():
        before = lens.prefill(tokens(1, 4)).state
        spoken = lens.generate(tokens(1, 4), 2).state
        weight.data += 1
        after = lens.prefill(tokens(1, 4)).state
        assert len({before.weights, after.weights}) == 2
        assert spoken.weights == before.weights
        with pytest.raises(InputError, match="made by other weights"):
            lens.extend(before, tokens(1, 1))
        lens.extend(after, tokens(1, 1))
        weight.data -= 2
        assert lens.generate(tokens(1, 4), 2).state.weights not in (before.weights, after.weights)


@pytest.mark.parametrize("family", ["llama", "recurrentgemma"])
def test_what_a_hook_on_an_activation_saw_is_not_written_over(family: str) -> None:
    """The product with the linear branch takes the activation's memory, but not where somebody may have kept it."""
    lens, seen = hl.HybridLens(make(family)), []
    act = next(part for name, part in lens.hf_model.named_modules() if name.endswith("act_fn") and "mlp" in name)
    handle = act.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    hooked = lens(tokens(1, 5))
    handle.remove()
    assert seen
    assert all(torch.equal(kept, was) for kept, was in seen)
    assert torch.equal(lens(tokens(1, 5)), hooked)
