"""Runs of the lens beside the contract's: ends, draws, edits by phase, states as values, caches, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bounds import FORWARD, close
from models import WITH_ATTENTION, WITH_STATE, make, tokens
from transformer_lens import patching
from transformer_lens.ActivationCache import ActivationCache

from hybridlens import Edit, HybridLens, HybridLensError, HybridState, Sampling


@pytest.fixture(params=WITH_STATE)
def model(request):
    return make(request.param)


@pytest.fixture
def lens(model):
    return HybridLens(model)


@pytest.fixture(params=WITH_ATTENTION)
def attending(request):
    """A lens of a family that has attention."""
    return HybridLens(make(request.param))


def test_a_row_ends_with_its_end_of_text_token(model):
    ids = tokens(4, 9)
    free = HybridLens(model).generate(ids, 6, stop_at_eos=False).tokens
    stop = int(free[1, 2])
    model.config.eos_token_id = model.generation_config.eos_token_id = stop  # the library reads the latter
    out = HybridLens(model).generate(ids, 6)
    for row in range(4):
        expected = free[row].tolist()
        cut = expected.index(stop) + 1 if stop in expected else 6
        assert out.lengths[row] == cut
        assert out.tokens[row, :cut].tolist() == expected[:cut]


def test_sampling_is_seeded_and_follows_the_distribution(lens):
    """4,000 draws of the next token against its probabilities: a wrong temperature is ten deviations off."""
    ids = tokens(1, 9)
    first = lens.generate(ids, 5, sampling=Sampling(seed=3))
    again = lens.generate(ids, 5, sampling=Sampling(seed=3))
    other = lens.generate(ids, 5, sampling=Sampling(seed=4))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    draws = lens.generate(ids.expand(4000, -1), 1, sampling=Sampling(seed=0, temperature=2.0), stop_at_eos=False).tokens
    with torch.no_grad():
        expected = (lens(ids)[0, -1] / 2.0).softmax(-1)
    counts = torch.bincount(draws[:, 0], minlength=53) / 4000
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts - expected).abs() < 5 * deviation + 1e-3).all()
    top = lens.generate(ids.expand(200, -1), 1, sampling=Sampling(seed=0, top_k=2)).tokens
    assert set(top[:, 0].tolist()) == set(expected.topk(2).indices.tolist())


def test_edits_act_in_their_phase_and_rows(lens):
    """Row 1 of a batch under a decode edit is what it is alone under that edit; the others are untouched."""
    ids = tokens(3, 9)
    heads = "attn.hook_z" if lens.cfg.attention_layers else "ssm.hook_y"
    z = next(name for name in lens.hook_points if name.endswith(heads))

    def scale(x, hook):
        return x * -3

    for phase in ("prefill", "decode", "both"):
        plain = lens.generate(ids, 5, stop_at_eos=False).tokens
        mixed = lens.generate(ids, 5, [Edit(z, scale, phase, rows=[1])], stop_at_eos=False)
        alone = lens.generate(ids[1:2], 5, [Edit(z, scale, phase)], stop_at_eos=False)
        assert torch.equal(mixed.tokens[[0, 2]], plain[[0, 2]])
        assert torch.equal(mixed.tokens[1], alone.tokens[0])
        state = alone.state.tensors()
        for name, value in mixed.state.select([1]).tensors().items():
            close(value, state[name], FORWARD)
    fired = []
    spy = [Edit(z, lambda x, hook, p=phase: fired.append((p, x.shape[1])), phase) for phase in ("prefill", "decode")]
    lens.generate(ids, 3, spy, stop_at_eos=False)
    assert fired == [("prefill", 8), ("decode", 1), ("decode", 1), ("decode", 1)]
    fired.clear()
    lens.generate(ids, 3, spy, boundary="first_new_token", stop_at_eos=False)
    assert fired == [("prefill", 9), ("decode", 1), ("decode", 1)]


def test_states_are_values(lens, tmp_path):
    ids = tokens(3, 10)
    with torch.no_grad():
        state = lens.prefill(ids).state
        before = {name: t.clone() for name, t in state.tensors().items()}
        ahead = lens.extend(state, tokens(3, 4, seed=5)).logits
        assert all(torch.equal(before[name], t) for name, t in state.tensors().items())
        state.save(tmp_path / "state.safetensors")
        loaded = HybridState.load(tmp_path / "state.safetensors")
        assert torch.equal(lens.extend(loaded, tokens(3, 4, seed=5)).logits, ahead)
        picked = lens.extend(state.select([2, 0, 2]), tokens(3, 4, seed=5)[[2, 0, 2]]).logits
        close(picked, ahead[[2, 0, 2]], FORWARD)
        doubled = lens.extend(state.repeat(2), tokens(3, 4, seed=5).repeat_interleave(2, 0)).logits
        close(doubled, ahead.repeat_interleave(2, 0), FORWARD)
        copy = state.clone()
        for held in copy.layers[0]["ssm"].tensors().values():
            held.zero_()
        assert torch.equal(lens.extend(state, tokens(3, 4, seed=5)).logits, ahead)
    assert state.batch == 3
    assert state.nbytes == sum(t.numel() * t.element_size() for t in before.values())


def test_key_positions_name_every_slot(attending):
    """The pattern of a decode step, put back at its absolute positions, is a row of the full pattern."""
    ids = tokens(2, 12)
    name = f"blocks.{attending.cfg.attention_layers[0]}.attn.hook_pattern"
    with torch.no_grad():
        full = attending.run_with_cache(ids, name)[1][name][:, :, -1]
        state = attending.prefill(ids[:, :-1]).state
        seen = {}
        attending.extend(state, ids[:, -1:], [Edit(name, lambda x, hook: seen.__setitem__("pattern", x))])
    positions = attending.key_positions(state, layer=attending.cfg.attention_layers[0])
    assert positions.shape[1] == seen["pattern"].shape[-1]
    scattered = torch.zeros(2, full.shape[1], 12)
    scattered.scatter_(2, positions[:, None].expand(-1, full.shape[1], -1), seen["pattern"][:, :, 0])
    close(scattered, full, FORWARD)


def test_the_cache_is_transformerlens_own_and_its_patching_runs(lens):
    """`generic_activation_patch` over layers and positions, against patching by hand."""
    clean, corrupt = tokens(1, 8, seed=1), tokens(1, 8, seed=2)
    stream = "resid_mid" if "blocks.0.hook_resid_mid" in lens.hook_points else "resid_pre"  # without an MLP

    def metric(logits):
        return logits[0, -1, 3] - logits[0, -1, 4]

    with torch.no_grad():
        _, cache = lens.run_with_cache(clean)
        assert isinstance(cache, ActivationCache)
        assert cache["resid_post", 0] is cache["blocks.0.hook_resid_post"]
        got = patching.generic_activation_patch(
            lens, corrupt, cache, metric, patching.layer_pos_patch_setter, stream, ("layer", "pos")
        )

        def patch(x, hook):
            x = x.clone()
            x[:, 5] = cache[stream, 1][:, 5]
            return x

        by_hand = metric(lens.run_with_hooks(corrupt, [(f"blocks.1.hook_{stream}", patch)]))
    assert got.shape == (lens.cfg.n_layers, 8)
    close(got[1, 5], by_hand)
    assert got.unique().numel() > lens.cfg.n_layers


def test_names_filter_position_slice_and_batch_axis_of_the_cache(attending):
    ids = tokens(1, 8)
    with torch.no_grad():
        wanted = [name for name in attending.hook_points if name.endswith(("resid_pre", "attn.hook_q"))]
        _, cache = attending.run_with_cache(ids, wanted, remove_batch_dim=True, pos_slice=(-2, None))
        whole = attending.run_with_cache(ids)[1]
    layer = attending.cfg.attention_layers[0]
    assert len(cache) == attending.cfg.n_layers + len(attending.cfg.attention_layers)
    assert torch.equal(cache["q", layer], whole["q", layer][0, -2:])
    assert not any(name.endswith("ssm.hook_pattern") for name in whole)


def test_reading_does_not_alias_what_a_later_hook_writes_in_place(lens):
    """A hook that zeroes the residual in place must not reach what was cached before it."""
    ids = tokens(1, 8)

    def zero(x, hook):
        x.zero_()

    with torch.no_grad(), lens.hooks([("blocks.1.hook_resid_pre", zero)]):
        cache = lens.run_with_cache(ids, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])[1]
    with torch.no_grad():
        plain = lens.run_with_cache(ids, "blocks.0.hook_resid_post")[1]
    assert torch.equal(cache["blocks.0.hook_resid_post"], plain["blocks.0.hook_resid_post"])


def test_hooks_that_cannot_stand_are_refused_and_gone(lens):
    ids, name = tokens(2, 6), "blocks.1.hook_mixer_out"
    wrong = {
        "shape": (lambda x, hook: x[:, :3], r"blocks.1.hook_mixer_out.*shape \[2, 3, 32\], expected \[2, 6, 32\]"),
        "dtype": (lambda x, hook: x.double(), r"dtype torch.float64, expected torch.float32"),
        "type": (lambda x, hook: 3.0, r"returned float, expected a tensor or None"),
        "device": (lambda x, hook: x.to("meta"), r"device meta, expected cpu"),
    }
    for fn, message in wrong.values():
        with pytest.raises(HybridLensError, match=message):
            lens.run_with_hooks(ids, [(name, fn)])
        assert not any(point.has_hooks() for point in lens.hook_dict.values())


def test_names_that_do_not_exist_are_refused_with_the_ones_that_do(attending):
    layers = attending.cfg.attention_layers
    wrong = 0 if 0 not in layers else attending.cfg.n_layers
    message = f"'blocks.{wrong}.attn.hook_pattern' does not exist: layers with attn.hook_pattern are " + ", ".join(
        map(str, layers)
    )
    with pytest.raises(HybridLensError, match=message):
        attending.run_with_cache(tokens(1, 4), f"blocks.{wrong}.attn.hook_pattern")
    with pytest.raises(HybridLensError, match=r"close names: blocks.0.hook_resid_post"):
        attending.run_with_hooks(tokens(1, 4), [("blocks.0.hook_resid_pst", lambda x, hook: x)])


BAD_TOKENS = {
    "empty prompt": ([[1, 2], []], "prompt 1 is empty"),
    "no rows": ([], "a batch of no rows"),
    "empty tensor": (torch.zeros(0, 4, dtype=torch.long), "a batch of no rows"),
    "no positions": (torch.zeros(2, 0, dtype=torch.long), "prompt 0 is empty"),
    "outside": (torch.tensor([[1, 53]]), "token 53 is outside the vocabulary, expected 0..52"),
    "negative": (torch.tensor([[-1, 5]]), "token -1 is outside"),
    "floats": (torch.ones(1, 3), "dtype torch.float32, expected integer ids"),
    "three axes": (torch.ones(1, 2, 3, dtype=torch.long), r"shape \[1, 2, 3\], expected \[batch, pos\]"),
    "text": ("hello", "needs a tokenizer"),
    "mixed": (["a", 3], "list of int, str"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_tokens_that_cannot_be_run_are_refused(lens, kind):
    given, message = BAD_TOKENS[kind]
    for call in (lens, lens.run_with_cache, lens.prefill, lens.generate):
        with pytest.raises(HybridLensError, match=message):
            call(given)


def test_states_and_contexts_that_do_not_fit_are_refused():
    rg, jamba = HybridLens(make("recurrentgemma")), HybridLens(make("jamba"))
    with torch.no_grad():
        state = rg.prefill(tokens(2, 5)).state
    with pytest.raises(HybridLensError, match=r"the state is of a model recurrentgemma.*this model is jamba"):
        jamba.extend(state, tokens(2, 1))
    with pytest.raises(HybridLensError, match="the state holds 2 rows, but 3 rows"):
        rg.extend(state, tokens(3, 1))
    with pytest.raises(HybridLensError, match=r"row 2 does not exist, the state holds rows 0..1"):
        state.select([2])
    with pytest.raises(HybridLensError, match="129 tokens given, but the model's context is 128"):
        jamba(tokens(1, 129))
    with pytest.raises(HybridLensError, match="129 tokens given, but the model's context is 128"):
        jamba.generate(tokens(1, 100), 30)
    with pytest.raises(HybridLensError, match="max_new_tokens = 0 given"):
        rg.generate(tokens(1, 5), 0)
    with pytest.raises(HybridLensError, match=r"temperature = 0\.0 given, expected a finite number above 0"):
        Sampling(seed=0, temperature=0.0)


SCRIPT = """
import torch
from models import make, tokens
from hybridlens import Edit, HybridLens
lens = HybridLens(make("jamba"))
for call in (
    lambda: Edit("hook_embed", lambda x, hook: x, "generation"),
    lambda: lens.generate(tokens(1, 5), 2, boundary="middle"),
    lambda: lens.trace(tokens(1, 5), max_new_tokens=2, boundary="middle").__enter__(),
):
    try:
        call()
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_words_that_annotations_forbid_are_refused_without_a_checker_too():
    """In a process of its own: here the type checker would refuse them before the library can."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}:{folder.parent}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "UnknownNameError phase 'generation' does not exist; expected one of prefill, decode, both",
        *["UnknownNameError boundary 'middle' does not exist; expected one of last_prompt_token, first_new_token"] * 2,
    ]
