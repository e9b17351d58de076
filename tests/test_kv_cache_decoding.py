"""Surgery at decode steps, and what going on from a changed or cropped state is the same as."""

import pytest
import torch
from bounds import FORWARD, apart, close
from kv_loops import read, rows, same
from models import FAMILIES, make, tokens

from analyses import kv_cache
from analyses.kv_cache import Surgery
from hybridlens import Edit, HybridLens
from hybridlens.state import HybridState


@pytest.fixture(scope="module", params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")])
def lens(request: pytest.FixtureRequest) -> HybridLens:
    family, dtype = request.param
    return HybridLens(make(family, 5, num_hidden_layers=6).to(getattr(torch, dtype)))


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5, num_hidden_layers=6))


# Decoding.


@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_surgery_at_decode_steps(exact: HybridLens, boundary: str) -> None:
    """Rows of other lengths under surgeries before, at one step and at every step, against loops of single tokens."""
    layer, prompts = exact.cfg.attention_layers[0], rows()
    surgeries = [
        Surgery(lambda s: kv_cache.decay(s, 0.0, layers=exact.cfg.ssm_layers[0]), at=1),
        Surgery(lambda s: kv_cache.keep_last(s, 3, layers=layer), at="every"),
        Surgery(lambda s: kv_cache.zero(s, "values", heads=0), at=[0, 2]),
    ]
    edits = [Edit(f"blocks.{layer}.hook_attn_out", lambda x, hook: x * 3, "decode"),
             Edit("blocks.0.hook_mlp_out", lambda x, hook: x * 0.2, "prefill")]  # fmt: skip
    out = kv_cache.generate_with(exact, prompts, surgeries, 5, edits, boundary, stop_at_eos=False)
    plain = exact.generate(prompts, 5, edits, boundary, stop_at_eos=False)
    none = kv_cache.generate_with(exact, prompts, (), 5, edits, boundary, stop_at_eos=False)
    assert torch.equal(none.tokens, plain.tokens)
    assert not torch.equal(out.tokens, plain.tokens)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            said, step = [], 0
            if boundary == "last_prompt_token":
                state, token = exact.prefill([prompt[:-1]], edits).state, prompt[-1]
            else:
                state, logits = exact.prefill([prompt], edits)
                token = int(logits[0, -1].argmax())
                said.append(token)
            while len(said) < 5:
                if step == 1:
                    state = kv_cache.decay(state, 0.0, layers=exact.cfg.ssm_layers[0])
                state = kv_cache.keep_last(state, 3, layers=layer)
                if step in (0, 2):
                    state = kv_cache.zero(state, "values", heads=0)
                state, logits = exact.extend(state, [[token]], edits)
                token, step = int(logits[0, -1].argmax()), step + 1
                said.append(token)
        assert out.tokens[row].tolist() == said


def test_no_edit_acts_while_a_surgery_is_done(exact: HybridLens) -> None:
    """A surgery that reads another prompt, before every step: what it reads is what it reads alone."""
    prompts = rows(3, (8,))
    edits = [Edit("blocks.0.hook_mlp_out", lambda x, hook: x * -4, "decode")]
    wanted = read(exact, prompts)
    seen: list[bool] = []

    def surgery(state: HybridState) -> HybridState:
        seen.append(same(read(exact, prompts), wanted))
        return state

    out = kv_cache.generate_with(exact, prompts, [Surgery(surgery, "every")], 4, edits, stop_at_eos=False)
    assert seen == [True] * 4
    assert torch.equal(out.tokens, exact.generate(prompts, 4, edits, stop_at_eos=False).tokens)
    assert not torch.equal(out.tokens, exact.generate(prompts, 4, stop_at_eos=False).tokens)


def test_going_on_from_a_state(exact: HybridLens) -> None:
    """A prompt read before, in whole or in part: the same text; and the state that was given stays what it was."""
    prompts = rows(3, (10, 10))
    state = read(exact, [row[:6] for row in prompts])
    before = state.clone()
    surgery = [Surgery(lambda s: kv_cache.zero(s, positions=[8]))]
    whole = kv_cache.generate_with(exact, prompts, surgery, 4)
    ours = kv_cache.generate_with(exact, [row[6:] for row in prompts], surgery, 4, state=state)
    assert torch.equal(ours.tokens, whole.tokens)
    state, last = read(exact, [row[:9] for row in prompts]), [row[9:] for row in prompts]
    assert torch.equal(kv_cache.generate_with(exact, last, surgery, 4, state=state).tokens, whole.tokens)
    assert torch.equal(kv_cache.generate_with(exact, last, (), 4, state=kv_cache.zero(state, positions=[8])).tokens,
                       whole.tokens)  # fmt: skip
    assert same(before, read(exact, [row[:6] for row in prompts]))


# What cropping is the same as, and what not.


def logits_after(lens: HybridLens, state: HybridState, token: int = 7) -> torch.Tensor:
    with torch.no_grad():
        return lens.extend(state, [[token]] * state.batch).logits[:, -1]


def cropped(lens: HybridLens, drop: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The next logits: ten tokens read and some dropped, against the others read alone."""
    prompt = tokens(1, 10, seed=3)[0].tolist()
    rest = [token for position, token in enumerate(prompt) if position not in drop]
    ours = logits_after(lens, kv_cache.drop(read(lens, [prompt]), drop))
    return ours, logits_after(lens, read(lens, [rest]))


def attention_only(family: str, layers: int, **changes) -> HybridLens:
    fields = {
        "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0},
        "recurrentgemma": {"block_types": ("attention",), "attention_window_size": 20},
    }[family]
    lens = HybridLens(make(family, 5, num_hidden_layers=layers, **fields, **changes))
    assert lens.cfg.ssm_layers == ()
    return lens


def test_cropping_is_never_having_read_where_nothing_else_remembers() -> None:
    """Global attention, no rotary, no recurrent layer: the last tokens can be dropped as if they had never been.

    Of one layer, any token can: its keys depend on no other token. Of several, later keys have seen an earlier one.
    """
    deep = attention_only("jamba", 3)
    close(*cropped(deep, [7, 8, 9]), FORWARD)
    assert apart(*cropped(deep, [3, 4]))
    close(*cropped(attention_only("jamba", 1), [3, 4, 8]), FORWARD)


def test_cropping_is_something_else_where_recurrent_layers_or_positions_remember(exact: HybridLens) -> None:
    """Recurrent states hold the dropped tokens; with rotary the next token stands as far away as before."""
    assert apart(*cropped(exact, [7, 8, 9]))
    assert apart(*cropped(attention_only("recurrentgemma", 1), [7, 8, 9]))
    still = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}
    unturned = attention_only("recurrentgemma", 3, rope_parameters=still)
    close(*cropped(unturned, [7, 8, 9]), FORWARD)
