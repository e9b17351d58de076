"""Other names for hook points: accepted wherever a name is, and never listed."""

import pytest
import torch
from models import make, tokens

from hybridlens import Edit, HybridLens, HybridLensError
from hybridlens.aliases import DELTA, MAMBA2

CASES = {
    "mamba2": MAMBA2, "falcon_h1": MAMBA2, "qwen3_next": DELTA, "nemotron_h": MAMBA2, "bamba": MAMBA2,
    "granitemoehybrid": MAMBA2, "olmo_hybrid": DELTA, "kimi_linear": DELTA,
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_an_alias_is_the_name_of_the_table(family):
    """Filters, hooks, backward hooks and edits of every phase take it; the cache has the table's name alone."""
    lens, ids = HybridLens(make(family)), tokens(2, 7)
    for alias, target in CASES[family].items():
        name, other = f"blocks.0.{target}", f"blocks.0.{alias}"
        assert other not in lens.hook_points
        assert lens.hook_points[other] == lens.hook_points[name]
        with torch.no_grad():
            cache = lens.run_with_cache(ids, [other])[1]
            assert list(cache.keys()) == [name]
            assert torch.equal(cache[name], lens.run_with_cache(ids, name)[1][name])
            expected = lens.run_with_hooks(ids, [(name, lambda x, hook: x * 0.5)])
            assert torch.equal(lens.run_with_hooks(ids, [(other, lambda x, hook: x * 0.5)]), expected)
            assert torch.equal(lens.prefill(ids, [Edit(other, lambda x, hook: x * 0.5)]).logits, expected)
            ours = lens.generate(ids, 3, [Edit(other, lambda x, hook: x * 0.5, "decode")], stop_at_eos=False).tokens
            same = lens.generate(ids, 3, [Edit(name, lambda x, hook: x * 0.5, "decode")], stop_at_eos=False).tokens
            assert torch.equal(ours, same)
    seen = []
    with lens.hooks(bwd_hooks=[(f"blocks.0.{next(iter(CASES[family]))}", lambda g, hook: seen.append(hook.name))]):
        lens(ids).sum().backward()
    assert seen == [f"blocks.0.{next(iter(CASES[family].values()))}"]


OTHER_TENSORS = {
    "recurrentgemma": ["ssm.hook_x", "mixer.hook_ssm_state"],
    "jamba": ["ssm.hook_x", "mixer.hook_ssm_state", "mixer.hook_ssm_write"],
    "mamba": ["ssm.hook_x", "mixer.hook_ssm_state", "mixer.hook_ssm_write"],
    "mamba2": ["linear_attn.hook_v", "mixer.hook_conv", "ssm.hook_beta"],
    "falcon_h1": ["linear_attn.hook_v"],
    "nemotron_h": ["linear_attn.hook_v", "ssm.hook_beta"],
    "bamba": ["linear_attn.hook_v"],
    "qwen3_next": ["ssm.hook_x", "linear_attn.hook_log_decay", "linear_attn.hook_ssm_state", "mixer.hook_ssm_state"],
    "qwen3_5": ["linear_attn.hook_log_decay", "linear_attn.hook_ssm_state"],
    "qwen3_5_moe": ["linear_attn.hook_log_decay", "linear_attn.hook_ssm_state"],
    "granitemoehybrid": ["linear_attn.hook_v", "mixer.hook_conv"],
    "lfm2": ["ssm.hook_x", "ssm.hook_B", "ssm.hook_C", "linear_attn.hook_v"],
    "lfm2_moe": ["ssm.hook_B", "mixer.hook_ssm_state"],
    "kimi_linear": ["ssm.hook_x", "linear_attn.hook_log_decay"],
    "olmo_hybrid": ["ssm.hook_x", "linear_attn.hook_log_decay"],
}


@pytest.mark.parametrize("family", OTHER_TENSORS)
def test_names_of_other_tensors_are_no_aliases(family):
    """The decay's logarithm, transposed states and another kind's letters would be wrong numbers without a word."""
    lens = HybridLens(make(family))
    for name in OTHER_TENSORS[family]:
        with pytest.raises(HybridLensError, match=f"'blocks.0.{name}' does not exist") as caught:
            lens.run_with_cache(tokens(1, 4), f"blocks.0.{name}")
        assert "\n" not in str(caught.value)
        with pytest.raises(KeyError) as looked:
            lens.hook_points[f"blocks.0.{name}"]
        assert str(looked.value) == str(caught.value)


def test_a_point_is_looked_up_by_name_alone():
    points = HybridLens(make("jamba")).hook_points
    with pytest.raises(KeyError, match=r"^0 was given; hook points go by name, as 'hook_embed'"):
        points[0]


def test_an_alias_on_a_layer_without_the_thing_says_which_layers_have_it():
    lens = HybridLens(make("qwen3_next"))
    with pytest.raises(HybridLensError, match=r"'blocks.1.ssm.hook_q' does not exist: layers with ssm.hook_q are 0, 2"):
        lens.run_with_cache(tokens(1, 4), "blocks.1.linear_attn.hook_q")


def test_a_mambas_own_letters_stay_its_own():
    """Jamba's B and C are points of the table, one for all channels."""
    lens = HybridLens(make("jamba"))
    assert "blocks.0.ssm.hook_B" in lens.hook_points
    assert lens.run_with_cache(tokens(1, 4), "blocks.0.ssm.hook_B")[1]["blocks.0.ssm.hook_B"].shape == (1, 4, 5)
