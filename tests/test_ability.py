"""General ability with some heads kept, against one plain forward pass per condition."""

import json
import random
import sys
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from bounds import FORWARD, LOUD, bound, close
from models import FAMILIES, make
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.experiment.filler import TRAINED_SEED, filler_tokens, unseen_sentences
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_heads
from analyses.study.benchmarks.local_tasks import FOLDER
from analyses.study.rankings.ability import filler_loss, task_scores
from hybridlens import tiny
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.tiny.documents import N_SENTENCES, filler_sentences
from hybridlens.tiny.recipes import RECIPES

TINY = "tiny-recurrentgemma"


@cache
def tiny_lens() -> hl.HybridLens:
    return hl.load(TINY)


def masks_of(lens, n: int, seed: int = 0) -> list[torch.Tensor]:
    """All heads, none, then random ones."""
    shape = len(lens.cfg.attention_layers), lens.cfg.n_heads
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.rand(shape, generator=generator) > 0.5 for _ in range(n)]
    return [torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool), *chosen]


@contextmanager
def silenced(model, mask, width):
    """PyTorch hooks on the untouched model: zeros where silent heads' outputs enter each output projection."""
    names = [name for name, _ in model.named_modules() if name.endswith(".o_proj")]

    def zero(row):
        return lambda module, args: (args[0] * row.repeat_interleave(width),)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(zero(row.float()))
        for name, row in zip(names, mask, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def rows_read(lens):
    """A list that gets the number of rows of every forward pass."""
    read = []
    with lens.hooks([("hook_embed", lambda embed, hook: read.append(embed.shape[0]))]):
        yield read


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_one_pass_per_condition(family):
    """Five conditions on three texts in batches of four rows, against PyTorch's own hooks on the untouched model.

    The fixed choice of heads, row by row, has to give the same logits. The losses of random models differ between
    conditions by far more than the tolerance.
    """
    lens = benchmark_lens(family)
    masks, tokens = masks_of(lens, 3), filler_tokens(lens, 40, 3)
    found = filler_loss(lens, masks, tokens, batch_size=4)
    assert found.shape == (5,)
    for loss, mask in zip(found, masks, strict=True):
        ranking = HeadRanking(mask.float(), lens.cfg.attention_layers, "test", lower_is_better=False)
        edits = keep_heads(lens, ranking, int(mask.sum()))
        total = 0.0
        with torch.no_grad(), silenced(lens.hf_model, mask, lens.cfg.d_head):
            for row in tokens:
                plain = lens.hf_model(row[None], use_cache=False).logits[0].log_softmax(-1)
                ours = lens.prefill(row[None], edits).logits[0].log_softmax(-1)
                close(ours, plain, LOUD)
                total -= sum(float(plain[at, token]) for at, token in enumerate(row[1:].tolist()))
        close(loss.item(), total / (3 * 39), LOUD, dtype=torch.float32)
    least = 10 * bound(float(found.max()), FORWARD)
    assert min(abs(a - b) for i, a in enumerate(found.tolist()) for b in found.tolist()[:i]) > least


def test_equal_conditions_are_computed_once():
    """Rows that are read: texts times distinct masks, in batches; and every repetition gets the same number."""
    lens = benchmark_lens("jamba")
    all_, none, some = masks_of(lens, 1)
    tokens = filler_tokens(lens, 12, 2)
    with rows_read(lens) as read:
        found = filler_loss(lens, [some, all_, some.clone(), none, all_], tokens, batch_size=4)
    assert read == [4, 2]
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert len(set(found.tolist())) == 3
    close(found[[1, 3, 0]], filler_loss(lens, [all_, none, some], tokens))


def test_filler_is_held_out():
    """No sentence stood in training; of the grammar's own stream more than half did, so leaving out is needed.

    What training used is what its records say: both models' seed, and the recipes' number of sentences.
    """
    for info in tiny.describe():
        assert json.loads((Path(info.path) / "training.json").read_text())["seed"] == TRAINED_SEED
    assert {recipe.n_sentences for recipe in RECIPES.values()} == {N_SENTENCES}
    trained = set(filler_sentences(TRAINED_SEED))
    found = list(islice(unseen_sentences("held-out filler 0 0"), 300))
    assert len(set(found)) > 290
    assert not set(found) & trained
    text = tiny_lens().tokenizer.decode(filler_tokens(tiny_lens(), 120, 1)[0], skip_special_tokens=True)
    assert text.startswith(" ".join(found[:5]))
    assert len(text) < len(" ".join(found))


def test_filler_rows():
    """Exact lengths, a beginning of text each, other texts each, the same however many and however long."""
    lens = tiny_lens()
    tokens = filler_tokens(lens, 200, 4, seed=2)
    assert tokens.shape == (4, 200)
    assert tokens[:, 0].tolist() == [lens.tokenizer.bos_token_id] * 4
    assert not bool(torch.isin(tokens[:, 1:], torch.tensor(lens.tokenizer.all_special_ids)).any())
    assert len({tuple(row) for row in tokens.tolist()}) == 4
    assert torch.equal(filler_tokens(lens, 50, 2, seed=2), tokens[:2, :50])
    assert not torch.equal(filler_tokens(lens, 200, 4, seed=3), tokens)
    for words in ("bpe", "unigram"):
        assert filler_tokens(benchmark_lens("jamba", words=words), 61, 2).shape == (2, 61)


@torch.no_grad()
def accuracy(lens, items):
    """Multiple choice as lm-eval grades it, from the untouched model: the choice of the highest likelihood."""
    right = 0
    for item in items:
        context = lens.tokenizer(item["prompt"] + item["subject"])["input_ids"]
        scores = []
        for choice in item["choices"]:
            ids = lens.tokenizer(f"{item['prompt']}{item['subject']} {choice}")["input_ids"]
            found = lens.hf_model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            scores.append(sum(float(found[at - 1, ids[at]]) for at in range(len(context), len(ids))))
        right += scores.index(max(scores)) == item["label"]
    return right / len(items)


def test_task_scores_are_those_of_the_untouched_model():
    """tiny_facts under two conditions, one of them given twice, against plain hooks.

    They differ, and the one without attention is right in some items only, so neither can stand for the other.
    """
    lens = tiny_lens()
    _, none, some = masks_of(lens, 1)
    lines = (FOLDER / "tiny_facts.jsonl").read_text().splitlines()
    items = [json.loads(lines[at]) for at in sorted(random.Random("items of tiny_facts").sample(range(80), 12))]
    with rows_read(lens) as read:
        found = task_scores(lens, [none, some, none], ["tiny_facts"], limit=12)
        passes = len(read)
        task_scores(lens, [none], ["tiny_facts"], limit=12)
    assert passes == 2 * (len(read) - passes)
    expected = []
    for mask in (none, some, none):
        with silenced(lens.hf_model, mask, lens.cfg.d_head):
            expected.append(accuracy(lens, items))
    close(found["tiny_facts"].tolist(), expected)
    assert 0 < expected[0] < expected[1]


def test_task_scores_of_all_tasks():
    """Each task has its accuracy; without attention retrieval is gone and agreement is not."""
    lens = tiny_lens()
    all_, none = masks_of(lens, 0)
    found = task_scores(lens, [all_, none], ("tiny_grammar", "tiny_recite", "tiny_retrieval"), limit=3)
    assert list(found) == ["tiny_grammar", "tiny_recite", "tiny_retrieval"]
    assert found["tiny_grammar"].tolist() == [1, 1]
    assert found["tiny_recite"][0] > found["tiny_recite"][1] == 0
    assert found["tiny_retrieval"][0] > found["tiny_retrieval"][1]
    assert list(task_scores(lens, [all_], limit=1)) == ["tiny_facts", "tiny_grammar"]


def test_refusals(monkeypatch):
    lens = benchmark_lens("jamba")
    mask, tokens = masks_of(lens, 0)[0], torch.randint(0, 9, (1, 5))
    for run in (lambda kept: filler_loss(lens, kept, tokens), lambda kept: task_scores(lens, kept)):
        with pytest.raises(InputError, match="no condition given"):
            run([])
        with pytest.raises(InputError, match=r"condition 1 is a mask \[3, 4\] of torch.bool, expected .* \[2, 4\]"):
            run([mask, torch.ones(3, 4, dtype=torch.bool)])
        with pytest.raises(InputError, match=r"condition 1 is a mask \[2, 4\] of torch.float32, expected truth"):
            run([mask, mask.float()])
    with pytest.raises(InputError, match="rows of 1 token given"):
        filler_loss(lens, [mask], tokens[:, :1])
    with pytest.raises(InputError, match="batch_size = 0 given"):
        filler_loss(lens, [mask], tokens, batch_size=0)
    with pytest.raises(InputError, match="ranking heads needs attention heads"):
        filler_loss(hl.HybridLens(make("jamba", attn_layer_period=8, attn_layer_offset=7)), [mask], tokens)
    with pytest.raises(InputError, match=r"filler of 401 tokens asked for, expected 2\.\.400"):
        filler_tokens(lens, 401, 1)
    with pytest.raises(InputError, match=r"filler of 1 tokens"):
        filler_tokens(lens, 1, 1)
    with pytest.raises(InputError, match="0 rows of filler"):
        filler_tokens(lens, 10, 0)
    with pytest.raises(InputError, match="filler text needs a tokenizer"):
        filler_tokens(hl.HybridLens(lens.hf_model), 10, 1)
    with pytest.raises(UnknownNameError, match="'tiny_fact' does not exist; close names: tiny_facts"):
        task_scores(lens, [mask], ["tiny_fact"])
    with pytest.raises(InputError, match="limit = 0 given"):
        task_scores(lens, [mask], limit=0)
    with pytest.raises(InputError, match="'tiny_facts' given more than once"):
        task_scores(lens, [mask], ["tiny_facts", "tiny_facts"])
    with pytest.raises(InputError, match="tokenizer is NoneType, expected one of transformers"):
        task_scores(hl.HybridLens(lens.hf_model), [mask], limit=1)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"not installed; install hybridlens\[benchmarks\]"):
        task_scores(lens, [mask])
