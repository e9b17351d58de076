"""`detect_head` and `reinitialized` under TransformerLens' names, where TransformerLens' own stop at a hybrid."""

import pytest
import torch
from bounds import EMBEDDED, LAYER, close
from models import make, tokens
from transformer_lens import head_detector

import hybridlens as hl
from analyses.heads.scores import head_scores
from hybridlens import HybridLens
from hybridlens.errors import InputError
from hybridlens.head_detector import detect_head
from hybridlens.untrained import reinitialized

WORDS = "The cat is in the tower"


@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_detecting_heads_is_transformer_lens_own(measure):
    """On a model whose layers all have heads and whose context is limited, where theirs runs."""
    lens, ids = HybridLens(make("falcon_h1")), torch.tensor([[5, 6, 7, 5, 6, 7]])
    _, cache = lens.run_with_cache(ids, remove_batch_dim=True)
    for kind in ("previous_token_head", "duplicate_token_head", "induction_head"):
        for without in ({}, {"exclude_bos": True}, {"exclude_current_token": True}):
            how = without | {"error_measure": measure, "cache": cache}
            ours = detect_head(lens, ids, kind, **how)
            close(ours, head_detector.detect_head(lens, ids, kind, **how), LAYER)
    some = detect_head(lens, ids, "induction_head", [(1, 2)], error_measure=measure)
    close(some, head_detector.detect_head(lens, ids, "induction_head", [(1, 2)], error_measure=measure), LAYER)
    assert torch.equal(detect_head(lens, ids, "induction_head", {1: [2]}, error_measure=measure), some)


@pytest.mark.parametrize("model", ["tiny-recurrentgemma", "tiny-jamba"])
def test_detecting_heads_goes_over_layers_that_have_them(model):
    lens = hl.load(model)
    with torch.no_grad():
        found = detect_head(lens, WORDS, "previous_token_head", exclude_bos=True)
        shares = head_scores(lens, lens.to_tokens(WORDS + " " + WORDS), measure="share")
        same = detect_head(lens, WORDS + " " + WORDS, "previous_token_head", exclude_bos=True)
    have = found.isfinite().all(dim=1)
    assert have.nonzero().flatten().tolist() == list(lens.attn_layers)
    assert found[~have].isnan().all()
    close(same[have], shares.mean("previous").float(), EMBEDDED)
    _, cache = lens.run_with_cache(WORDS, remove_batch_dim=True)
    before = cache["pattern", lens.attn_layers[0]].clone()
    cached = detect_head(lens, WORDS, "previous_token_head", cache=cache, exclude_bos=True)
    close(cached[have], found[have], EMBEDDED)
    assert torch.equal(cache["pattern", lens.attn_layers[0]], before)
    both = detect_head(lens, [WORDS, "The cat"], "previous_token_head")
    each = [detect_head(lens, text, "previous_token_head") for text in (WORDS, "The cat")]
    close(both[have], torch.stack(each).mean(dim=0)[have], EMBEDDED)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"detection_pattern": "copying_head"}, "'copying_head' does not exist, expected one of previous_token_head"),
        ({"detection_pattern": torch.ones(4, 4)}, "above its diagonal"),
        ({"detection_pattern": torch.ones(3, 3)}, r"\[3, 3\] given, expected a name or a tensor \[4, 4\]"),
        ({"heads": [(0, 1)]}, r"a head of layer 0 was given, but layers with attention are \[1\]"),
        ({"heads": [(1, 4)]}, "head 4 of layer 1 was given, which has heads 0 to 3"),
        ({"heads": [1]}, "expected .layer, head. pairs"),
        ({"seq": torch.tensor([[1]])}, "a prompt of 1 token was given"),
        ({"seq": tokens(2, 4), "cache": {}}, "one cache was given for 2 prompts"),
        ({"error_measure": "mse"}, "mse"),
    ],
)
def test_what_cannot_be_detected_is_refused(given, match):
    lens = HybridLens(make("qwen3_next"))
    with pytest.raises(hl.HybridLensError, match=match) as caught:
        detect_head(lens, **({"seq": tokens(1, 4), "detection_pattern": "induction_head"} | given))
    assert "\n" not in str(caught.value)


def test_no_attention_to_detect_heads_in():
    with pytest.raises(InputError, match="attention"):
        detect_head(HybridLens(make("mamba2")), tokens(1, 4), "induction_head")


@pytest.mark.parametrize("model", ["tiny-jamba", "mamba2"])
def test_an_untrained_model_is_the_class_own(model):
    """The library's own model of the configuration, from the same seed; the trained one and torch's draws stay."""
    lens = hl.load(model) if model.startswith("tiny") else HybridLens(make(model))
    before, state = {name: w.clone() for name, w in lens.state_dict().items()}, torch.get_rng_state()
    drawn = reinitialized(lens, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(w, before[name]) for name, w in lens.state_dict().items())
    torch.manual_seed(3)
    expected = type(lens.hf_model)(lens.hf_model.config).eval()
    with torch.no_grad():
        close(drawn(tokens(1, 4)), expected(tokens(1, 4)).logits, EMBEDDED)
    assert drawn.tokenizer is lens.tokenizer
    assert not drawn.training
    assert not torch.equal(reinitialized(lens, 4).W_E, drawn.W_E)
