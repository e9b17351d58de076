# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Induction heads
#
# An induction head finds an earlier occurrence of the present token and predicts what followed it ("In-context learning
# and induction heads", Olsson et al. 2022). In a transformer it needs a second head, of an earlier layer, that tells
# each token which one stood before it. What does a hybrid do, whose recurrent layers could tell the same?
# TransformerLens' demo finds such heads with random tokens, repeated; this notebook does it on `tiny-jamba`, takes the
# found heads away, and sets them beside what weights alone say (`02_head_circuits.py`).

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import copy
import random

import torch

import hybridlens as hl
from analyses import circuits, sparsification
from analyses.heads.repeats import repeated_tokens
from analyses.heads.scores import head_scores
from hybridlens import niah
from hybridlens.display import Curve, Table
from hybridlens.viz import attention_heads

torch.set_grad_enabled(False)
lens = hl.load("tiny-jamba")
lens

# %% [markdown]
# ## Random tokens, twice
#
# Fifty different random tokens, and the same fifty again. Only the repetition can be predicted, and only from the
# prompt.

# %%
period = 50
tokens = repeated_tokens(lens, rows=4, period=period)


def losses(tokens, lens=lens, **options):
    """Loss in nats: at each token, mean over prompts; and means over the first fifty and over the repeated ones."""
    loss = lens.run_with_hooks(tokens, return_type="loss", loss_per_token=True, **options)
    return loss.mean(0), float(loss[:, :period].mean()), float(loss[:, period + 1 :].mean())


by_token, first, second = losses(tokens)
print(f"first time {first:.2f} nats a token, second time {second:.2f}")
assert second < first - 2
Curve(range(1, len(by_token) + 1), {"loss": by_token.tolist()}, "token", "nats")

# %% [markdown]
# The second time is easier by about three nats. It is no copying machine: the model was trained on sentences, random
# words surprise it more than a uniform guess would (log 725 ≈ 6.6 nats), and repetition only lessens that.
#
# ## Scores of attention heads
#
# How much of its attention does each head give, on such prompts, to the token before (previous), to the earlier
# occurrence of its token (duplicate), and to the token after that (induction)? Means over the tokens that have such a
# key, with the spread over three draws of prompts; the BOS, on which idle heads rest, is left out.

# %%
scores = head_scores(lens, period=period)
scores

# %%
scores.plot()

# %%
found = [tuple(head) for head in scores.ranking("induction").order[:4]]
print("induction heads:", ", ".join(f"L{layer} H{head}" for layer, head in found))
assert {layer for layer, _ in found} == {6}
assert scores.mean("previous").max() < 0.1

# %% [markdown]
# Four heads of layer 6 are induction heads, and there is **no previous-token head** for them to build on: none gives
# even a tenth of its attention to the token before.
#
# ## Scores of recurrent layers
#
# A recurrent layer mixes tokens too, and its hidden attention says what each readout takes of each earlier token. The
# same scores, of shares of its magnitudes:

# %%
recurrent = head_scores(lens, of="recurrent", period=period)
assert recurrent.mean("induction").max() < 0.02 < 0.05 < recurrent.mean("previous").min()
recurrent

# %% [markdown]
# A decaying state favours what is near, and so the token before, in every layer; none inducts. Hidden attention leaves
# out what the convolution in front of the state does. Keep that in mind for the end.
#
# ## Patterns
#
# Twelve random tokens, twice; heads in the order of their induction scores. A stripe in the lower half, one token to
# the right of the earlier occurrence, is the sign of induction; here it has gaps. Hover over a head to see it large.

# %%
short = repeated_tokens(lens, rows=1, period=12)
_, cache = lens.run_with_cache(short, names_filter="blocks.6.attn.hook_pattern")
order = [head for layer, head in scores.ranking("induction").order if layer == 6]
attention_heads(lens.to_str_tokens(short[0]), cache["pattern", 6][0, order].numpy(), [f"L6 H{head}" for head in order])

# %% [markdown]
# The first layer with attention, and a recurrent layer's hidden attention, for comparison:

# %%
_, cache = lens.run_with_cache(short, names_filter=["blocks.2.attn.hook_pattern", "blocks.5.ssm.hook_pattern"])
views = torch.cat([cache["pattern", 2][0, :3], cache.compute_ssm_effective_attention(layer=5)[0]])
attention_heads(lens.to_str_tokens(short[0]), views.numpy(), ["L2 H0", "L2 H1", "L2 H2", "L5 S0"])

# %% [markdown]
# ## What are they worth?
#
# A pattern is not an effect. Silence the four heads, and then four others drawn at random, ten times.


# %%
def silenced(heads):
    def zero(z, hook):
        z[:, :, [head for layer, head in heads if layer == hook.layer()]] = 0
        return z

    return [(f"blocks.{layer}.attn.hook_z", zero) for layer in {layer for layer, _ in heads}]


others = [(layer, head) for layer in scores.layers for head in range(8) if (layer, head) not in found]
drawn = [random.Random(seed).sample(others, 4) for seed in range(10)]
_, first_without, second_without = losses(tokens, fwd_hooks=silenced(found))
at_random = [losses(tokens, fwd_hooks=silenced(heads))[2] for heads in drawn]
assert second_without > first_without
assert second_without > second + 3 > max(at_random) + 2
Table(
    ("silenced", "nats, second time", "change"),
    [
        ("nothing", second, 0.0),
        ("the four induction heads", second_without, second_without - second),
        ("four others, mean of ten draws", sum(at_random) / 10, sum(at_random) / 10 - second),
        ("four others, the worst draw", max(at_random), max(at_random) - second),
    ],
)

# %% [markdown]
# Without them the second time is no easier than the first: all that the model gained by repetition was theirs. Does the
# same hold where the model is good, at needles in text?

# %%
prompts = [list(prompt.tokens) for prompt in niah.grid(lens.tokenizer, lengths=[150, 200], depths=[0, 50, 100])]


def accuracy(edits=()):
    texts = lens.generate(prompts, max_new_tokens=24, edits=list(edits)).text
    return sum(map(niah.score, texts)) / (5 * len(texts))


retrieval = {
    "all": accuracy(),
    "the four": accuracy(sparsification.keep_heads(lens, scores.ranking("induction"), 4)),
    "the twelve others": accuracy([hl.Edit(name, fn) for name, fn in silenced(found)]),
}
assert retrieval["all"] == 1.0
assert retrieval["the twelve others"] < 0.2 < 0.8 < retrieval["the four"]
Table(("heads kept", "accuracy"), list(retrieval.items()))

# %% [markdown]
# ## What weights alone say
#
# `circuits` never ran the model on a token. Its induction strength says of each head: does it copy, and does it look
# for what a writer says of the token before?

# %%
static = circuits.circuits(lens, model="tiny-jamba")
ranking = static.ranking("induction")
by_weights = torch.tensor([[ranking.score(layer, head) for head in range(8)] for layer in scores.layers])
table = scores.to_pandas()[["layer", "head", "induction"]]
table["by weights"] = by_weights.flatten().tolist()
table["through"] = static.to_pandas()["inducts_through"]
assert table["induction"].corr(table["by weights"]) > 0.9
print(f"correlation over the {len(table)} heads: {table['induction'].corr(table['by weights']):.2f}")
table.sort_values("induction", ascending=False).head(6)

# %%
static.plot()

# %% [markdown]
# The two agree, and the weights also name the missing half of the circuit: the writer of "the token before" is layer
# 5's convolution, at lag 1. (The plot shows retrieval strength, which `02_head_circuits.py`
# explains.) If that is so, without this one tap there is no induction, and without any other layer's
# there still is.

# %%
rows = [("none", second, float(scores.mean("induction")[1, :4].mean()))]
for layer in lens.cfg.ssm_layers:
    model = copy.deepcopy(lens.hf_model)
    model.model.layers[layer].mamba.conv1d.weight[:, 0, -2] = 0  # the last tap is the token itself
    cut = hl.HybridLens(model, lens.tokenizer)
    rows.append((f"L{layer}, lag 1", losses(tokens, cut)[2], float(head_scores(cut).mean("induction")[1, :4].mean())))
by_cut = {row[0]: row for row in rows}
assert min(by_cut, key=lambda name: by_cut[name][2]) == max(by_cut, key=lambda name: by_cut[name][1]) == "L5, lag 1"
Table(
    ("tap cut", "nats, second time", "induction of the four heads"),
    rows,
    {"induction of the four heads": "mean share of attention to what followed the earlier occurrence"},
    heat=("induction of the four heads",),
)

# %% [markdown]
# So this hybrid inducts like a transformer with one of the two heads replaced: a recurrent layer's short convolution
# tells each token what stood before it, and attention does the rest.
