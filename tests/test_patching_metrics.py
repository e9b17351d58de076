"""Metrics against their definitions, computed another way, and what is said when one cannot be used."""

import pytest
import torch
from bounds import FORWARD, LAYER, close, quotient
from models import FAMILIES, VOCAB, make, tokens
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.patching.metrics import (
    KullbackLeibler,
    LogitDifference,
    LogProbability,
    Metric,
    NeedleScore,
    OwnFunction,
    Rank,
    as_metric,
    measured,
)
from analyses.patching.running import activation_patch
from analyses.patching.targets import Target
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.hooks import Edit

LOGITS = torch.randn(4, 6, VOCAB, generator=torch.Generator().manual_seed(3)) * 3


def test_logit_metrics_are_what_they_say():
    """Each against a formula of its own, row by row."""
    last = LOGITS[:, -1].double()
    assert LogitDifference(5, 9)(LOGITS).tolist() == (LOGITS[:, -1, 5] - LOGITS[:, -1, 9]).tolist()
    expected = (last[:, 7].exp() / last.exp().sum(1)).log()
    close(LogProbability((7,))(LOGITS).double(), expected, LAYER, dtype=torch.float32)
    for row in range(4):
        order = sorted(range(VOCAB), key=lambda token, row=row: (-float(LOGITS[row, -1, token]), token))
        assert [Rank(token)(LOGITS)[row] for token in range(VOCAB)] == [order.index(t) for t in range(VOCAB)]
    for count in (1, 3, 6):
        reference = torch.randn(count, VOCAB)
        p, q = reference.double().softmax(-1), LOGITS[:, 6 - count :].double().softmax(-1)
        expected = (p * (p / q).log()).sum(-1).mean(-1)
        metric = KullbackLeibler(reference)
        assert metric.last_only == (count == 1)
        close(metric(LOGITS).double(), expected, LAYER, dtype=torch.float32)
    close(KullbackLeibler(reference[-1])(LOGITS), KullbackLeibler(reference[-1:])(LOGITS))


def test_ties_rank_as_greedy_decoding_has_them():
    """Of equal logits the lowest id comes first, so that rank 1 is the token that `argmax` takes."""
    flat = torch.zeros(1, 2, 5)
    assert [int(Rank(token)(flat)) for token in range(5)] == [0, 1, 2, 3, 4]
    assert int(flat[0, -1].argmax()) == 0


def test_a_reference_that_rules_tokens_out_gives_a_number():
    reference = LOGITS[0, -1].clone()
    reference[:10] = float("-inf")
    assert KullbackLeibler(reference)(LOGITS).isfinite().all()


@pytest.mark.parametrize("metric", [LogitDifference(5, 9), LogProbability((7,)), KullbackLeibler(LOGITS[0, 2:])])
def test_gradients_flow(metric):
    """The differentiable ones are, for attribution by gradients: against finite differences."""
    logits = LOGITS[:2].clone().requires_grad_()
    metric(logits).sum().backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = 1e-2 * direction
        difference = (metric(LOGITS[:2] + step) - metric(LOGITS[:2] - step)).sum() / 2e-2
    slope = float((logits.grad * direction).sum())
    # The quotient of a metric this curved is a hundredth off at this step, at the most.
    allowed = quotient(float(LOGITS.abs().max()), 1e-2) + 0.01 * abs(slope)
    close(float(difference), slope, extra=allowed, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_answer_is_read_on(family):
    """The product of the conditional probabilities, from one pass over prompt and answer together."""
    lens = hl.HybridLens(make(family, 2))
    prompt, answer = tokens(3, 12), (8, 1, 30, 2)
    with torch.no_grad():
        value = measured(LogProbability(answer), lens, lens.network(prompt, None, None, True), ["row"] * 3)
        whole = torch.cat([prompt, torch.tensor(answer).expand(3, -1)], dim=1)
        log = lens(whole).log_softmax(-1)[:, 11:-1]
    expected = sum(log[:, i, token] for i, token in enumerate(answer))
    close(value, expected.double(), FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_needle_scores_are_those_of_plain_generation(family):
    """Under patches of the prompt and none while answering: each row against a generation of its own.

    The rubric is made of what the untrained models say, so that their answers differ in score.
    """
    lens = benchmark_lens(family)
    clean, corrupt = (torch.randint(5, lens.cfg.d_vocab, (1, 80)) for _ in range(2))  # beyond the window
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(lens.cfg.n_layers)]
    targets = [Target(name, {"p": place}) for name in names for place in (slice(60, 79), -1)]
    with torch.no_grad():
        values = lens.run_with_cache(clean, names)[1]
    texts = []
    for target in targets:
        place = target.where["p"]

        def put(x, hook, place=place, source=values[target.hook]):
            x[:, place] = source[:, place]
            return x

        edits = [Edit(target.hook, put, phase="prefill")]
        texts.append(lens.generate(corrupt, 6, edits, boundary="first_new_token").text[0])
    ends = [lens.generate(side, 6, boundary="first_new_token").text[0] for side in (clean, corrupt)]
    rubric = _rubric([*ends, *texts])
    result = activation_patch(lens, clean, corrupt, NeedleScore(rubric, 6), targets=targets, batch_size=5)
    assert result.raw.tolist() == [niah.score(text, rubric) for text in texts]
    assert result.raw.unique().numel() > 1
    assert [result.clean, result.corrupt] == [niah.score(text, rubric) for text in ends]


def _rubric(texts):
    """A rubric under which the first text scores 5, and others by which of the words that not all have they have."""
    words = [set(niah.normalise(text).split()) for text in texts]
    told = sorted(set.union(*words) - set.intersection(*words))
    rules = [niah.Rule(niah.normalise(texts[0]), 5.0, "set")]
    return (*rules, *(niah.Rule(word, 0.1 * (1 + place), "add") for place, word in enumerate(told[:8])))


def test_metrics_that_cannot_be_used_say_so():
    lens = hl.HybridLens(make("jamba", 2))
    output = lens.network(tokens(2, 100), None, None, True)

    def refused(message, metric, run=output):
        with pytest.raises(InputError, match=message) as caught:
            measured(as_metric(metric), lens, run, ["row 0", "row 1"])
        assert "\n" not in str(caught.value)

    refused(r"token 53 is outside the vocabulary, expected 0\.\.52", LogitDifference(1, VOCAB))
    with pytest.raises(InputError, match="token = -1 given, expected a whole number from 0 "):
        Rank(-1)
    refused("token 60 is outside the vocabulary", LogProbability((4, 60)))
    refused("130 tokens given, but the model's context is 128", LogProbability(tuple(range(31))))
    refused("give HybridLens a tokenizer", NeedleScore(niah.PAPER_RUBRIC))
    refused(r"reference logits have shape \[7\], but the run's are \[2, 1, 53\]", KullbackLeibler(torch.zeros(7)))
    refused(r"reference logits have shape \[3, 53\]", KullbackLeibler(torch.zeros(3, VOCAB)))
    refused(r"metric 'total' returned shape \[\], expected \[2\]", total)
    refused("metric 'lost' returned inf for row 1, expected finite numbers", lost)
    refused("metric 'words' returned list, expected a tensor", words)
    with pytest.raises(InputError, match=r"answer = \(\) given, expected a list of whole numbers .* at least 1"):
        LogProbability(())
    with pytest.raises(InputError, match="the logits of a prompt tell of its next token, but the answer has 2"):
        LogProbability((1, 2))(LOGITS)


def total(logits):
    return logits.sum()


def lost(logits):
    return torch.tensor([1.0, float("inf")])


def words(logits):
    return ["a", "b"]


def test_metrics_have_words():
    """Every metric says what it measures; a function has its name."""
    metrics = [
        LogitDifference(1, 2), LogProbability((3,)), Rank(4), KullbackLeibler(torch.zeros(2, 5)),
        NeedleScore(niah.PAPER_RUBRIC, 12), as_metric(total),
    ]  # fmt: skip
    assert all(isinstance(metric, Metric) for metric in metrics)
    assert [metric.words for metric in metrics] == [
        "logit of token 1 minus that of token 2",
        "log-probability of token 3",
        "rank of token 4 (0 is the likeliest)",
        "divergence from the reference at the last 2 positions, in nats",
        "needle score of up to 12 new tokens (0 to 5)",
        "total",
    ]
    assert isinstance(metrics[-1], OwnFunction)
    assert not metrics[-1].last_only
