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
# # What does a state hold?
#
# A recurrent layer remembers a whole prompt in a state of fixed size. The paper finds that, once attention is silenced,
# the state-space layers of a hybrid do not make up for it. Is the needle not in their states, or is it there and not
# read? And is that so of every recurrence? This notebook looks into the states of two embedded models: `tiny-jamba`,
# Mamba layers beside attention, and `tiny-deltanet`, gated DeltaNet layers alone, which has nothing else to remember
# by. It runs offline in seconds; `hybridlens states` does it over more prompts, with a report.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from analyses import states
from analyses.patching import pairs
from hybridlens import niah
from hybridlens.display import Grid, TokenText

torch.set_grad_enabled(False)
jamba, delta = hl.load("tiny-jamba"), hl.load("tiny-deltanet")
print("tiny-jamba: attention in", jamba.cfg.attention_layers, "recurrent", jamba.cfg.ssm_layers)
print("tiny-deltanet: attention in", delta.cfg.attention_layers, "recurrent", delta.cfg.ssm_layers)

# %% [markdown]
# ## The same needle for both

# %%
(prompt,) = niah.grid(jamba.tokenizer, lengths=[150], depths=[50])
(alike,) = niah.grid(delta.tokenizer, lengths=[150], depths=[50])
assert alike.tokens == prompt.tokens
rows, (start, end) = [list(prompt.tokens)], prompt.needle_span
for name, lens in (("tiny-jamba", jamba), ("tiny-deltanet", delta)):
    text = lens.generate(rows).text[0]
    print(f"{name}, {niah.score(text)} of 5 points: {text}")
TokenText(jamba.to_str_tokens(rows[0]), marked=[(start, end)])

# %% [markdown]
# ## How large is it?
#
# All that is remembered of a prompt is one value. Keys and values grow with every token; states and the inputs of
# convolutions do not.

# %%
delta.prefill(rows).state

# %%
jamba.prefill(rows).state

# %% [markdown]
# ## How long does it keep what is written?
#
# Each entry of a state is multiplied at every token by a decay between 0 and 1: its half-life follows from it, in
# tokens. The median says little (most entries forget at once), the tail says how far back a layer can look.

# %%
lasting = {name: states.spectrum(lens, rows) for name, lens in (("tiny-jamba", jamba), ("tiny-deltanet", delta))}
for name, found in lasting.items():
    beyond = ", ".join(
        f"L{layer} {100 * float(share.mean()):.0f} %" for layer, share in zip(found.layers, found.beyond, strict=True)
    )
    print(f"{name}: entries that keep half for longer than the prompt: {beyond}")
lasting["tiny-deltanet"]

# %% [markdown]
# ## Which tokens does it still hold?
#
# What is written adds up, so the state after any token can be taken apart into what each earlier token wrote and what
# is left of it: shares that add up to 1 over the prompt. What the needle's tokens hold at the end stands beside what
# they would hold if all tokens held the same; below it, how that came about over the prompt.

# %%
spans = [(start, end)]
held = {"tiny-jamba": states.holding(jamba, rows, spans), "tiny-deltanet": states.holding(delta, rows, spans)}
even = float(held["tiny-jamba"].even[0, -1])
for name, found in held.items():
    share = found.share[:, 0, :, 0, -1]
    place = int(share.argmax())
    layer, head = found.layers[place // share.shape[1]], place % share.shape[1]
    print(f"{name}: {float(share.mean()):.1%} on average ({even:.1%} if all tokens held the same)")
    print(f"    most in layer {layer}, head {head}: {float(share.max()):.1%}")
held["tiny-deltanet"]

# %% [markdown]
# Jamba's states have all but dropped the needle by the end of the prompt. DeltaNet's have dropped it in most heads, and
# a few are made of it: a head of these layers writes a key's value *instead of* what stood at that key, so a token's
# share shrinks where a later one asks for the same place, and stays where none does.
#
# ## Is it what the answer is made of?
#
# A share is not a use. Two prompts that differ in the needle alone, and one number that tells their answers apart: the
# logit of this needle's next word less that of the other's. Erase what one layer wrote of the needle, and look what is
# left of the number.

# %%
from analyses import kv_cache
from analyses.states.silencing import recurrent_heads

(needles,) = kv_cache.needle_pairs(["paper"])
left = {}
for name, lens in (("tiny-jamba", jamba), ("tiny-deltanet", delta)):
    pair = pairs.other_needle(lens, needles.needle_a, needles.needle_b, length=150, depth=50)
    tokens, span = list(pair.clean_tokens), range(*pair.clean_prompt.needle_spans[0])
    for layer in lens.cfg.state_layers:
        heads = [head for head in recurrent_heads(lens) if head[0] == layer]
        found = states.knockout(lens, tokens, pair.logit_difference, heads, span, controls=1)
        left[name, layer] = found.value / found.untouched
layers = range(max(jamba.cfg.n_layers, delta.cfg.n_layers))
nothing = float("nan")
values = [[left.get((name, layer), nothing) for layer in layers] for name in ("tiny-jamba", "tiny-deltanet")]
Grid(
    values, ["tiny-jamba", "tiny-deltanet"], [f"L{layer}" for layer in layers], "model", "layer", "share left, 1 is all"
)

# %% [markdown]
# In Jamba the answer does not notice, whichever layer forgets the needle. In DeltaNet it loses nearly half when layer 4
# does; and layer 3, whose states hold the largest share, is not needed for this needle (it is for others: try
# `"treasure"`). `hybridlens crossover` says the same without erasing anything, by giving one prompt's states to
# another: the recurrent states decide 83 % of DeltaNet's answers
# <!-- from zoo/numbers: value[model=tiny-deltanet & quantity=follows recurrent states] in % -->, and 0 % of Jamba's.
# <!-- from zoo/numbers: value[model=tiny-jamba & quantity=follows recurrent states] in % -->
#
# ## What an attention head would have looked at
#
# A recurrence is a kind of attention: each output is a sum over earlier tokens, with weights that can be computed
# exactly. It costs a matrix of tokens by tokens for each head, and so is computed where it is asked for. What the last
# twenty tokens of the prompt read of the needle, in one head of DeltaNet:

# %%
layer, head = 4, int(held["tiny-deltanet"].share[4, 0, :, 0, -1].argmax())
point = f"blocks.{layer}.ssm.hook_pattern"
pattern = delta.run_with_cache(torch.tensor(rows), point)[1][point][0, head]
words = delta.to_str_tokens(rows[0])
weights = pattern[-20:, start:end]
Grid(weights.tolist(), words[-20:], words[start:end], "read by", "the needle", "weight", f"L{layer} S{head}")

# %% [markdown]
# Weights may have either sign, and no row has to sum to 1. How to erase, write and read states by hand, and how to give
# one prompt's states to another, is in `03_patching_and_caches`; half-lives, ranks and probes of any model and text
# come with `hybridlens states --model MODEL --texts FILE`.
