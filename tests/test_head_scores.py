"""Scores of heads on repeated random tokens: planted heads come out on top, and the numbers are TransformerLens'.

What is planted stands at a random layer and head of a random model, so that a score that looked along another diagonal,
or at another head, would put something else on top.
"""

import pytest
import torch
from bounds import close
from models import make
from patching_loops import small
from planted import made
from transformer_lens import head_detector

import hybridlens as hl
from analyses.heads.ranking import HeadRanking
from analyses.heads.repeats import looked_for, repeated_tokens
from analyses.heads.scores import SCORES, HeadScores, head_scores
from hybridlens.errors import InputError, UnknownNameError

ROTARY = ("recurrentgemma", 0.5, 2, 1)
PLANTED = [
    ("previous", ROTARY),
    ("induction", ROTARY),
    ("induction", ("jamba", 0.0, 2, 7)),
    ("tap", ("jamba", 0.0, 1, 6)),
]


@pytest.mark.parametrize(("kind", "model"), PLANTED)
def test_planted_heads_come_out_on_top(kind, model):
    """A previous-token head; a head that looks at what followed, its keys written by a head or by a recurrent tap."""
    p = made(kind, model)
    found = head_scores(p.lens, period=18, rows=3, draws=2)
    name = "previous" if kind == "previous" else "induction"
    first, second = found.top(name, 2)
    if (
        kind == "induction" and model[0] == "jamba"
    ):  # it looks at tokens equal to the one before: at earlier copies of it
        assert found.layers == p.lens.cfg.attention_layers
    assert first[:2] == p.head
    assert first[2] > 0.5
    assert second[2] < first[2] / 2
    if p.writer is not None and model[1]:
        assert found.top("previous", 1)[0][:2] == p.writer
    assert found.spread(name).max() < 0.3
    assert found.ranking(name).best(1) == [p.head]


@pytest.mark.parametrize("exclude", [(False, False), (True, False), (False, True), (True, True)])
def test_shares_are_those_of_the_head_detector(exclude):
    """Its own three detection patterns and similarity, on the patterns of a run: on random and on repeated tokens."""
    lens = small("recurrentgemma")
    lens = hl.HybridLens(lens.hf_model, FakeTokenizer())
    row = repeated_tokens(lens, 1, 12, seed=3)
    mixed = torch.randint(2, 9, (1, 24), generator=torch.Generator().manual_seed(1))
    mixed[:, 0] = FakeTokenizer.bos_token_id
    for tokens in (row, mixed):
        ours = head_scores(lens, tokens, measure="share", exclude_bos=exclude[0], exclude_current=exclude[1])
        patterns = {layer: lens.run_with_cache(tokens)[1]["pattern", layer][0] for layer in lens.cfg.attention_layers}
        for name in SCORES:
            kind = {
                "previous": "previous_token_head",
                "duplicate": "duplicate_token_head",
                "induction": "induction_head",
            }
            wanted = getattr(head_detector, f"get_{kind[name]}_detection_pattern")(tokens)
            expected = [
                [
                    head_detector.compute_head_attention_similarity_score(
                        head, wanted, exclude_bos=exclude[0], exclude_current_token=exclude[1], error_measure="mul"
                    )
                    for head in patterns[layer]
                ]
                for layer in ours.layers
            ]
            close(ours.mean(name), torch.tensor(expected).double(), 64, dtype=torch.float32, scale=1.0)


class FakeTokenizer:
    """What the scores ask of one."""

    bos_token_id = 1
    pad_token_id = None
    all_special_ids = (0, 1)


@pytest.mark.parametrize("bos", [False, True])
def test_means_are_those_along_the_diagonals(bos):
    """Over the second half for copies, as the demos take them, with queries that see the BOS alone left out."""
    lens = hl.HybridLens(small("jamba").hf_model, FakeTokenizer() if bos else None)
    n, first = 7, int(bos)
    found = head_scores(lens, period=n, rows=3, draws=2, seed=4)
    for draw in range(2):
        tokens = repeated_tokens(lens, 3, n, 4 + draw)
        assert tokens.shape == (3, 2 * n + first)
        assert bool((tokens[:, first : n + first] == tokens[:, n + first :]).all())
        assert all(len(set(row.tolist())) == n for row in tokens[:, first:])
        assert not bos or (tokens[:, 0] == 1).all()
        pattern = lens.run_with_cache(tokens)[1]["pattern", 1]
        ends = {"previous": (-1, 1 if bos else 0), "duplicate": (-n, first), "induction": (1 - n, 1 + first)}
        for name, (offset, skipped) in ends.items():
            expected = pattern.diagonal(offset, dim1=-2, dim2=-1)[..., skipped:].mean(dim=(0, 2))
            close(getattr(found, name)[draw, 0], expected, 64, dtype=torch.float32, scale=1.0)


@pytest.mark.parametrize("family", ["recurrentgemma", "qwen3_next"])
def test_recurrent_heads_by_their_hidden_attention(family):
    """Against a loop over heads and queries; of a matrix state and of blocks of channels."""
    lens = small(family)
    found = head_scores(lens, of="recurrent", period=5, rows=2, draws=1)
    tokens = repeated_tokens(lens, 2, 5, 0)
    assert found.layers == lens.cfg.state_layers
    keys = {"previous": lambda i: i - 1, "duplicate": lambda i: i - 5, "induction": lambda i: i - 4}
    queries = {"previous": range(1, 10), "duplicate": range(5, 10), "induction": range(5, 10)}
    with torch.no_grad():
        kept = lens.run_with_cache(tokens, [f"blocks.{layer}.ssm.hook_pattern" for layer in found.layers])[1]
    for row, layer in enumerate(found.layers):
        hidden = kept[f"blocks.{layer}.ssm.hook_pattern"].abs().double()
        for name in SCORES:
            for head in range(hidden.shape[1]):
                shares = [
                    float(hidden[b, head, i, keys[name](i)] / hidden[b, head, i].sum())
                    for b in range(2)
                    for i in queries[name]
                ]
                close(found.mean(name)[row, head].item(), sum(shares) / len(shares), 64, scale=1.0, dtype=torch.float32)
    assert found.mean("previous").max() > 0.1
    assert found.spread("previous").isnan().all()


def test_layers_of_other_numbers_of_heads():
    """Where a layer has fewer heads there is no number, the best heads are found all the same, and no ranking."""
    some = torch.tensor([[[0.25, 0.875], [0.5, torch.nan]]]).double()
    found = HeadScores(some, some, some, (1, 4), "attention", "made up")
    assert found.top("induction", 9) == [(1, 1, 0.875), (4, 0, 0.5), (1, 0, 0.25)]
    with pytest.raises(InputError, match="scores that are not numbers"):
        found.ranking()
    with pytest.raises(InputError, match="scores of 2 layers given for layers"):
        HeadScores(some, some, some, (1,), "attention", "made up")


def test_scores_are_saved_shown_and_ranked(tmp_path):
    found = head_scores(small("jamba"), period=6, rows=2, draws=2)
    again = HeadScores.load(found.save(tmp_path / "scores.safetensors"))
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in SCORES)
    assert isinstance(found.ranking("duplicate"), HeadRanking)
    assert repr(found).startswith("<HeadScores: best heads: induction L1 H")
    frame = found.to_pandas()
    assert frame["previous"].tolist() == found.mean("previous").flatten().tolist()
    assert frame["layer"].tolist() == [1, 1, 1, 1]
    assert len(found._repr_html_()) < 10_000
    assert found.plot("previous").data[0].z is not None


def test_bad_input_is_one_line():
    lens = small("jamba")

    def fails(line, error=InputError, lens=lens, **options):
        with pytest.raises(error, match=line) as caught:
            head_scores(lens, **options)
        assert "\n" not in str(caught.value)

    fails("54 different tokens asked for, but the vocabulary has 53", period=54)
    fails("attention", lens=hl.HybridLens(make("mamba2", 0)))
    fails("states", lens=hl.HybridLens(make("llama", 0)), of="recurrent")
    fails("'sum'", UnknownNameError, measure="sum")
    fails("'mlp'", UnknownNameError, of="mlp")
    fails("a prompt has no query for the induction score", tokens=[[3, 4, 5, 6]])
    fails("prompts of 3, 4 tokens were given, expected equal lengths", tokens=[[3, 3, 3], [3, 4, 4, 3]])
    with pytest.raises(UnknownNameError, match="'retrieval'"):
        head_scores(lens, period=5, rows=1, draws=1).ranking("retrieval")


def test_keys_by_hand():
    """a b a b b: who is asked for what."""
    found = looked_for(torch.tensor([[7, 8, 7, 8, 8]]))
    assert found["previous"][0].nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert found["duplicate"][0].nonzero().tolist() == [[2, 0], [3, 1], [4, 1], [4, 3]]
    assert found["induction"][0].nonzero().tolist() == [[2, 1], [3, 2], [4, 2], [4, 4]]
