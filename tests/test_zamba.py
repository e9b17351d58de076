"""What Zamba alone has: channels whose heads read and write in directions of their own, and a library's inexact cache.

That every point, edit and gradient is right, the contract says; options and refusals are in `test_options`, what shared
blocks feed and refuse, in `test_shared_block`.
"""

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, rounding, tokens
from transformers import DynamicCache

import hybridlens as hl

IDS = tokens(2, 14)


@pytest.fixture(scope="module")
def model():
    return make("zamba", 3)


@pytest.fixture(scope="module")
def lens(model):
    return hl.HybridLens(model)


@torch.no_grad()
def run(model, ids, cache, **given):
    return model(ids, past_key_values=cache, use_cache=True, **given).logits


@torch.no_grad()
def whole(model, ids, **given):
    return model(ids, use_cache=False, **given).logits


def test_what_transformers_is_inexact_in(model, lens):
    """One token goes on from its cache, several go on from an empty state; without attention nothing goes on.

    Should the library be mended this test fails, and the docs are to say so. Ours is the untouched run over the whole
    text either way.
    """
    exact, extra = whole(model, IDS), 8 * rounding(model, IDS)
    cache = DynamicCache(config=model.config)
    close(run(model, IDS[:, :12], cache), exact[:, :12], FORWARD, extra=extra)
    close(run(model, IDS[:, 12:13], cache), exact[:, 12:13], FORWARD, extra=extra)
    cache = DynamicCache(config=model.config)
    run(model, IDS[:, :9], cache)
    assert apart(run(model, IDS[:, 9:], cache, position_ids=torch.arange(9, 14)[None]), exact[:, 9:])
    with torch.no_grad():
        state = lens.prefill(IDS[:, :9]).state
        close(lens.extend(state, IDS[:, 9:]).logits, exact[:, 9:], FORWARD, extra=extra)
    alone = make("zamba", layers_block_type=["linear_attention"] * 4)
    with pytest.raises(ValueError, match="get_seq_length"):
        run(alone, IDS, DynamicCache(config=alone.config))


@pytest.mark.parametrize("bias", [True, False])
def test_beside_padding_the_librarys_convolution_reads_a_bias(bias):
    """It silences what enters the projection, whose bias then enters the convolution; ours gives each row's own run."""
    model = make("zamba", 3, mamba_proj_bias=bias)
    exact, extra = whole(model, IDS), 8 * rounding(model, IDS)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(17) >= 3).long().expand(2, -1)
    theirs = whole(model, padded, attention_mask=mask)[:, 3:]
    if bias:
        assert apart(theirs, exact)
    else:
        close(theirs, exact, FORWARD, extra=extra)
    with torch.no_grad():
        ours = hl.HybridLens(model)({"input_ids": padded, "attention_mask": mask})
        close(ours[:, 3:], exact, FORWARD, extra=extra)


def test_a_head_reads_and_writes_its_own_channels_alone(lens):
    """Directions of the second head set to 0 leave the first head's states and readout bit for bit, and end its own."""
    name, half = "blocks.0.ssm", lens.cfg.d_channels // 2
    plain = lens.run_with_cache(IDS, lambda point: point.startswith(name))[1]
    kept = {}

    def silenced(x, hook):
        x = x.clone()
        x[:, :, 1] = 0
        return x

    points = [f"{name}.hook_state", f"{name}.hook_y", f"{name}.hook_pattern"]
    keep = [(points, lambda x, hook: kept.__setitem__(hook.name, x.clone()))]
    lens.run_with_hooks(IDS, [(f"{name}.hook_B", silenced), *keep])
    states, read, pattern = (kept[point] for point in points)
    assert torch.equal(states[:, :, :half], plain[points[0]][:, :, :half])
    assert torch.equal(read[..., :half], plain[points[1]][..., :half])
    assert torch.equal(pattern[:, 0], plain[points[2]][:, 0])
    assert not states[:, :, half:].any()
    assert not pattern[:, 1].any()
    assert plain[points[0]][:, :, half:].any()


def test_one_head_is_mamba():
    """With one head its mixer is the library's Mamba of the same weights, channels and gates no longer by turns."""
    zamba, mamba = make("zamba", 3, n_mamba_heads=1), make("mamba", 3, time_step_rank=3, state_size=5, use_bias=True)
    ours, theirs = zamba.model.layers[0].mamba, mamba.backbone.layers[0].mixer
    with torch.no_grad():
        for name in ("in_proj", "out_proj", "conv1d"):
            for part in ("weight", "bias"):
                given = getattr(getattr(ours, name), part)
                turned = torch.cat([given[0::2], given[1::2]]) if name == "in_proj" else given
                getattr(getattr(theirs, name), part).copy_(turned)
        theirs.x_proj.weight.copy_(ours.x_proj_weight[0])
        theirs.dt_proj.weight.copy_(ours.dt_proj_weight[0])
        theirs.dt_proj.bias.copy_(ours.dt_proj_bias[0])
        theirs.A_log.copy_(ours.A_log[0])
        theirs.D.copy_(ours.D[0])
    cache = hl.HybridLens(zamba).run_with_cache(IDS)[1]
    x = cache["blocks.0.ln1.hook_normalized"] * zamba.model.layers[0].input_layernorm.weight
    with torch.no_grad():
        close(theirs(x), cache["blocks.0.hook_ssm_out"], FORWARD)
