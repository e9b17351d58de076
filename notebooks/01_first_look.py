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
# # A first look inside a hybrid
#
# A hybrid language model mixes attention with recurrent layers. This notebook opens one, the embedded
# `tiny-recurrentgemma`, and shows every way in: the list of hook points, a cache, an edit, a trace, states,
# and the paper's ranking of heads by entropy. Everything runs offline, in seconds. To look into another
# checkpoint, change the name to a folder or a hub id: the names of the hook points stay the same.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from analyses import entropy, sparsification
from hybridlens import niah
from hybridlens.display import Grid, TokenText
from hybridlens.viz import attention_heads

lens = hl.load("tiny-recurrentgemma")
lens.cfg

# %% [markdown]
# ## A prompt with a needle
#
# The benchmark hides one sentence in essay-like text and asks for it. Where the needle's tokens stand is
# known, not searched for.

# %%
(prompt,) = niah.grid(lens.tokenizer, lengths=[150], depths=[33])
start, end = prompt.needle_span
TokenText([lens.to_string([token]) for token in prompt.tokens], marked=[(start, end)])

# %%
answer = lens.generate([prompt.tokens])
assert niah.score(answer.text[0]) == 5.0
answer

# %% [markdown]
# ## Hook points
#
# One namespace for attention and recurrent layers alike, in the order in which they fire, with what the axes are.

# %%
lens.hook_points

# %% [markdown]
# All of them are in pandas as well, with a letter for each axis: b batch, p position, k key, h head, g key/value head,
# e width of a head, c recurrent channel, d residual stream, f MLP. Those of the first layer with attention:

# %%
points = lens.hook_points.to_pandas()
points[points["name"].str.startswith("blocks.2.attn")]

# %% [markdown]
# ## Cache
#
# `run_with_cache` returns a `HybridCache`: TransformerLens' `ActivationCache` for hybrids, so its short names work.

# %%
tokens = torch.tensor([prompt.tokens])
with torch.no_grad():
    logits, cache = lens.run_with_cache(tokens)
pattern = cache["pattern", 5]
print("attention:", tuple(pattern.shape), " recurrent state:", tuple(cache["state", 1, "ssm"].shape))
cache

# %% [markdown]
# Which heads look at the needle while the model reads the last token of the question?

# %%
layers, heads = [f"L{layer}" for layer in lens.cfg.attention_layers], [f"H{head}" for head in range(lens.cfg.n_heads)]
mass = torch.stack([cache["pattern", layer][0, :, -1, start:end].sum(-1) for layer in lens.cfg.attention_layers])
Grid(mass, layers, heads, "layers", "heads", "attention to the needle", limit=1)

# %% [markdown]
# ## Edit
#
# An edit is a name and a function. Silencing both attention layers while the answer is written takes the
# needle away; silencing the recurrent write at the needle's tokens does something else. Edits are gone when
# the call returns.


# %%
def silence(x, hook):
    return torch.zeros_like(x)


def silence_needle(x, hook):
    x = x.clone()
    if x.shape[1] > 1:  # prefill: all tokens of the prompt
        x[:, start:end] = 0
    return x


no_attention = [hl.Edit(f"blocks.{layer}.attn.hook_z", silence, phase="decode") for layer in lens.cfg.attention_layers]
no_write = [hl.Edit(f"blocks.{layer}.ssm.hook_write", silence_needle) for layer in lens.cfg.ssm_layers]
for title, edits in (("no attention in decode", no_attention), ("needle never written to the states", no_write)):
    text = lens.generate(tokens, edits=edits).text[0]
    print(f"{title}: {niah.score(text):.1f} of 5\n   {text}")

# %% [markdown]
# ## Trace
#
# The same points in nnsight, read and written in forward order, with gradients.

# %%
with lens.trace(tokens):
    layer5 = lens.blocks[5].attn.hook_pattern.output.save()
    lens.blocks[5].attn.hook_z.output[:, :, 3] = 0
    edited = lens.hook_logits.output.save()
print("same pattern as the cache:", torch.equal(layer5, pattern))
print("largest change of a logit without head 3:", float((edited - logits).abs().max().detach()))

# %%
with lens.trace(tokens):
    state = lens.blocks[1].ssm.hook_state.output
    best = lens.hook_logits.output[0, -1].max()
    with best.backward():
        sensitivity = state.grad.save()
print("how the best logit depends on layer 1's state:", tuple(sensitivity.shape))

# %% [markdown]
# ## States
#
# All that a hybrid remembers is one value. Reading goes on from it by any number of tokens, exactly.

# %%
with torch.no_grad():
    state, _ = lens.prefill(tokens[:, :100])
    _, rest = lens.extend(state, tokens[:, 100:])
print("largest difference to one run:", float((rest - logits[:, 100:]).abs().max()))
state

# %% [markdown]
# ## Heads by entropy, and keeping the best
#
# The paper keeps the k heads of lowest entropy in each layer and silences the others.

# %%
ranking = entropy.rank_heads(lens, tokens)
ranking

# %%
ranking.plot()

# %%
for k in (8, 4, 2, 1, 0):
    text = lens.generate(tokens, edits=sparsification.top_k(lens, k)).text[0]
    print(f"k = {k}: {niah.score(text):.1f} of 5")

# %% [markdown]
# ## A pattern, drawn by circuitsvis
#
# Cropped to the needle and the question; hover over a head to see it large.

# %%
shown = [*range(start, end), *range(len(prompt.tokens) - 30, len(prompt.tokens))]
view = pattern[0][:, shown][:, :, shown]
texts = [lens.to_string([prompt.tokens[i]]) for i in shown]
attention_heads(texts, view.numpy(), [f"L5 H{h}" for h in range(8)], positions=shown)
