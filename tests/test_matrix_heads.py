"""Heads of attention that is gated, normed, or has a recurrence beside it: ranked, kept, rewritten, looked at.

References are hooks written out by hand on one layer after the other. A model without attention is refused in one line,
in every function and command, before anything runs.
"""

from pathlib import Path

import pytest
import torch
from command_line import refused
from models import ATTENDING, ROWS, make, tokens
from random_lens import small_lens

from analyses import entropy, sparsification
from analyses.heads.manipulation import manipulate
from analyses.heads.needle_heads import look
from analyses.heads.ranking import HeadRanking
from analyses.heads.treatment import Treatment, treat
from hybridlens.errors import InputError

NEEDLE = (3, 6)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of float32 sums in another order."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=2e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("family", ATTENDING)
def test_a_silenced_head_writes_nothing(family):
    """Whatever its gate: its part of the write is 0, the others' stay, and so does a recurrence in the same layer.

    Behind a norm they stay but for its scale, which is that of what is left.
    """
    lens, ids = small_lens(family), tokens(2, 9)
    layer = lens.cfg.attention_layers[0]
    layers = lens.cfg.attention_layers
    ranking = HeadRanking(-torch.eye(4)[2].repeat(len(layers), 1), layers, "all but head 2", lower_is_better=False)
    edits = sparsification.keep_heads(lens, ranking, 3, scope="layer")
    whole = "hook_attn_out" if ROWS[family].shared else "hook_mixer_out"  # a shared block's heads feed the mixer
    points = [f"blocks.{layer}.{point}" for point in ("attn.hook_result", whole, "hook_attn_out")]
    points += [name for name in (f"blocks.{layer}.ln1_post.hook_scale",) if name in lens.hook_points]
    with torch.no_grad():
        _, plain = lens.run_with_cache(ids, points)
        seen: dict[str, torch.Tensor] = {}
        with lens.hooks([(points, lambda x, hook: seen.update({hook.name: x}))]):
            lens.prefill(ids, edits)
    result = seen[points[0]]
    assert not bool(result[:, :, 2].any())
    assert bool(plain[points[0]][:, :, 2].any())
    others, before = (values[points[0]][:, :, [0, 1, 3]] for values in (seen, plain))
    if points[3:]:
        others, before = others * seen[points[3]][:, :, None], before * plain[points[3]][:, :, None]
    close(others, before)
    beside, bias = plain[points[1]] - plain[points[2]], lens.blocks[layer].attn.out_bias()
    close(seen[points[1]], beside + result.sum(2) + (0 if bias is None else bias))
    assert bool(beside.any()) == (family == "falcon_h1")


@pytest.mark.parametrize("family", ATTENDING)
def test_no_heads_kept_is_no_attention(family):
    """k = 0 in a phase is the mixer's write without attention, in reading and in a decode step."""
    lens, ids = small_lens(family), tokens(2, 9)
    names = [f"blocks.{layer}.hook_attn_out" for layer in lens.cfg.attention_layers]
    with torch.no_grad():
        state, logits = lens.prefill(ids, sparsification.top_k(lens, 0, "prefill"))
        found = lens.extend(state, [[5], [6]], sparsification.top_k(lens, 0, "decode")).logits
        biases = {name: lens.blocks[int(name.split(".")[1])].attn.out_bias() for name in names}
        nothing = {name: 0 if bias is None else bias for name, bias in biases.items()}
        with lens.hooks([(names, lambda x, hook: torch.zeros_like(x) + nothing[hook.name])]):
            before, expected = lens.prefill(ids)
            close(logits, expected)
            close(found, lens.extend(before, [[5], [6]]).logits)


def by_hand(lens, ids, k: list[int], scope: str) -> torch.Tensor:
    """Logits under top-k, one attention layer after the other; scope "model" ranks a plain pass."""
    layers = lens.cfg.attention_layers
    patterns: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    patterns.update({i: cache[f"blocks.{i}.attn.hook_pattern"] for i in layers})

    def bits(pattern: torch.Tensor) -> torch.Tensor:
        return -(pattern * pattern.clamp_min(1e-38).log2()).sum(-1)

    def kept(row: int, query: int, layer: int, own: torch.Tensor) -> set[int]:
        if scope == "layer":
            order = sorted(range(4), key=lambda head: (float(bits(own)[row, head, query]), head))
            return set(order[: k[row]])
        everyone = [(float(bits(patterns[i])[row, head, query]), i, head) for i in layers for head in range(4)]
        return {head for _, i, head in sorted(everyone)[: k[row] * len(layers)] if i == layer}

    held: dict[int, torch.Tensor] = {}

    def keep(pattern, hook):
        held[int(hook.name.split(".")[1])] = pattern

    def silence(z, hook):
        layer = int(hook.name.split(".")[1])
        for row in range(z.shape[0]):
            for query in range(z.shape[1]):
                for head in set(range(4)) - kept(row, query, layer, held[layer]):
                    z[row, query, head] = 0

    hooks = [
        ([f"blocks.{i}.attn.hook_pattern" for i in layers], keep),
        ([f"blocks.{i}.attn.hook_z" for i in layers], silence),
    ]
    with torch.no_grad():
        return lens.run_with_hooks(ids, hooks)


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("family", ATTENDING)
def test_top_k_by_hand(family, scope):
    """Every row its own k, by sorting entropies of the pattern query by query."""
    lens, ids = small_lens(family), tokens(3, 8, 2)
    with torch.no_grad():
        found = lens.prefill(ids, sparsification.top_k(lens, [1, 3, 2], "both", scope)).logits
    close(found, by_hand(lens, ids, [1, 3, 2], scope))


@pytest.mark.parametrize("family", ATTENDING)
def test_ranks_are_mean_entropies(family):
    """Of all queries of prompts of unlike length, by summing over patterns."""
    lens, ids, lengths = small_lens(family), tokens(2, 9, 4), [9, 5]
    ranking = entropy.rank_heads(lens, ids, lengths=lengths, batch_size=1)
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    for i, layer in enumerate(lens.cfg.attention_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        bits = -(pattern * pattern.clamp_min(1e-38).log2()).sum(-1)
        close(ranking.scores[i], (bits[0].sum(-1) + bits[1, :, :5].sum(-1)) / 14)
    seen = look(lens, ids[0].tolist(), [7, 8], [NEEDLE])
    assert seen.ranking.layers == lens.cfg.attention_layers
    with torch.no_grad():
        _, cache = lens.run_with_cache(torch.tensor([[*ids[0].tolist(), 7, 8]]))
    for i, layer in enumerate(lens.cfg.attention_layers):
        mass = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, 8:10, slice(*NEEDLE)].sum(-1).mean(-1)
        close(seen.ranking.scores[i], mass)


@pytest.mark.parametrize("semantics", ["clean", "published"])
@pytest.mark.parametrize("mode", ["omit", "only", "binary", "null"])
@pytest.mark.parametrize("family", ATTENDING)
def test_manipulations_by_hand(family, mode, semantics):
    """In a decode step, key by key; every query sees the needle there."""
    lens, ids = small_lens(family), tokens(2, 9, 6)
    with torch.no_grad():
        state = lens.prefill(ids).state
    held = {i: lens.key_positions(state, layer=i)[0].tolist() for i in lens.cfg.attention_layers}

    def rewrite(pattern, hook):
        places = held[int(hook.name.split(".")[1])]  # a window has passed some
        inside = [key for key, place in enumerate(places) if place in range(*NEEDLE)]
        for row in range(2):
            weights = pattern[row, :, 0]
            numbers = weights[:, inside].mean(-1)
            number = weights[:, inside].sum() / 4 / len(inside)
            for head in range(4):
                for key in range(weights.shape[1]):
                    if mode == "binary" and key in inside:
                        weights[head, key] = numbers[head] if semantics == "clean" else number
                    elif mode == "null" or (key in inside) == (mode == "omit"):
                        weights[head, key] = 0

    with torch.no_grad():
        found = lens.extend(state, [[5], [6]], manipulate(lens, mode, NEEDLE, "decode", semantics)).logits
        with lens.hooks([([f"blocks.{i}.attn.hook_pattern" for i in lens.cfg.attention_layers], rewrite)]):
            close(found, lens.extend(state, [[5], [6]]).logits)


def test_a_model_without_attention_is_refused_by_every_function():
    """One line that says what needs heads; nothing is run."""
    lens = small_lens("mamba2")
    ranking = HeadRanking(torch.zeros(1, 4), (1,), "another model's", True)
    for fn in (
        lambda: entropy.rank_heads(lens, tokens(1, 5)),
        lambda: sparsification.top_k(lens, 0),
        lambda: sparsification.keep_heads(lens, ranking, 1),
        lambda: sparsification.keep_each(lens, [None]),
        lambda: manipulate(lens, "omit", NEEDLE),
        lambda: look(lens, list(range(3, 12)), [4], [NEEDLE]),
        lambda: treat(lens, [Treatment(0)], [()], "prefill"),
    ):
        with pytest.raises(InputError, match=r"^[a-z ]+ needs attention heads, but no layer of this mamba2 model has"):
            fn()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without attention, as a folder; it needs no tokenizer to be refused."""
    path = tmp_path_factory.mktemp("models") / "pure"
    make("mamba2").save_pretrained(path)
    return path


@pytest.mark.parametrize("command", ["heads", "rankings", "circuits"])
def test_a_model_without_attention_is_refused_by_what_is_about_heads(command, folder, tmp_path, capsys):
    """One line, and no folder is made; what else runs on such a model is in `test_commands_of_families`."""
    arguments = [command, "--model", folder]
    arguments += [] if command == "heads" else ["--out", tmp_path / "out"]
    line = refused(arguments, capsys)
    assert "attention" in line
    assert not (tmp_path / "out").exists()
