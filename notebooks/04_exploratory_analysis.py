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
# # Exploratory analysis
#
# TransformerLens' demo of this name, on a hybrid: which layers and heads make a model give an answer? Three tools, from
# cheap to sure. The *logit lens* reads the stream before it is finished. *Direct logit attribution* splits a logit into
# what every part added to it. *Activation patching* puts parts of one run into another and sees what comes back.
# The calls are those of TransformerLens, on a model with recurrent layers, and a mixture of experts in every other one.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from analyses import kv_cache
from analyses.patching import direct, pairs, sweeps
from analyses.stream import logit_lens
from hybridlens import act_patching as patching
from hybridlens.display import Curve, Grid
from hybridlens.viz import attention_heads
from hybridlens.viz.positions import position_heatmap

torch.set_grad_enabled(False)
lens = hl.load("tiny-jamba")
lens.cfg

# %% [markdown]
# ## Two prompts
#
# They differ in one sentence, and the model answers each with what that sentence says. Both answers begin alike; the
# prompts go on to where they part, so that one number tells the answers apart: the logit of the clean prompt's next
# word minus that of the corrupt prompt's, at the last position.

# %%
(needles,) = kv_cache.needle_pairs(["paper"])
pair = pairs.other_needle(lens, needles.needle_a, needles.needle_b, length=150, depth=50)
clean, corrupt = torch.tensor([pair.clean_tokens]), torch.tensor([pair.corrupt_tokens])
right, wrong = pair.answers
pair


# %%
def logit_difference(logits):
    return logits[0, -1, right] - logits[0, -1, wrong]


logits, cache = lens.run_with_cache(clean)
corrupt_logits = lens(corrupt)
print(f"clean {logit_difference(logits):+.2f}, corrupt {logit_difference(corrupt_logits):+.2f}")
cache

# %% [markdown]
# ## Logit lens
#
# What would the model say if it stopped after each layer? `cache.logit_lens` puts every state of the stream through the
# last norm and the unembedding. Up to what enters layer 6 neither answer is in sight.

# %%
read = cache.logit_lens(targets=list(pair.texts))
read

# %%
ranks = read.to_pandas().query("token == @pair.texts[0]").set_index("state")["rank"]  # 0 is the likeliest
assert ranks["6_pre"] > 10
assert ranks["7_pre"] == 0

# %% [markdown]
# The same at each of the last words of the prompt: how likely is, at each place of the stream, what the model itself
# says next? Words that the question gives away build up from layer 4 on. The needle's own word, at the last position,
# is not there before layer 6's attention has written, and then at once.

# %%
stream = logit_lens(lens, clean, positions=(-9, None))
stream.plot()

# %%
at_last = stream.to_pandas().groupby("place")["target_probability"].last()
assert at_last["blocks.5.hook_resid_post"] < 0.01
assert at_last["blocks.6.hook_resid_mid"] > 0.95

# %% [markdown]
# ## What each layer adds
#
# The stream is a sum, so the logit difference is one as well. `accumulated_resid` gives the sums so far and
# `decompose_resid` the terms; `logit_attrs` turns either into logits, through the last norm, its scale held.

# %%
so_far, names = cache.accumulated_resid(incl_mid=True, pos_slice=-1, return_labels=True)
sums = cache.logit_attrs(so_far, right, wrong, pos_slice=-1)[:, 0]
Curve(
    range(len(names)),
    {"logit difference so far": sums.tolist()},
    f"states of the stream, {names[0]} to {names[-1]}, two a layer",
    "logits",
)

# %%
terms, names = cache.decompose_resid(pos_slice=-1, return_labels=True)
added = cache.logit_attrs(terms, right, wrong, pos_slice=-1)[:, 0]
torch.testing.assert_close(added.sum(), logit_difference(logits), atol=1e-4, rtol=1e-4)
by_layer = dict(zip(names, added.tolist(), strict=True))
assert by_layer["6_attn_out"] > 0.7 * added.sum()
assert max(abs(by_layer[f"{layer}_ssm_out"]) for layer in lens.cfg.ssm_layers) < 0.1 * added.sum()
parts, nothing = ("ssm", "attn", "mlp"), float("nan")
rows = [[by_layer.get(f"{layer}_{part}_out", nothing) for part in parts] for layer in range(lens.cfg.n_layers)]
all_layers = [f"L{layer}" for layer in range(lens.cfg.n_layers)]
Grid(rows, all_layers, ["recurrence", "attention", "MLP"], "layers", "parts", "logits added to the difference")

# %% [markdown]
# One attention layer, layer 6, writes most of it; the last layer's experts add to it. The terms add up to the model's
# logit difference, which the assertion checks. No recurrent layer adds much by itself at the last position. That is
# what they *write* there, and says nothing of what others read from them.
#
# ## What each head adds

# %%
heads, names = cache.stack_head_results(pos_slice=-1, return_labels=True)
by_head = cache.logit_attrs(heads, right, wrong, pos_slice=-1)[:, 0].reshape(-1, lens.cfg.n_heads)
layers = [f"L{layer}" for layer in lens.cfg.attention_layers]
columns = [f"H{head}" for head in range(lens.cfg.n_heads)]
Grid(by_head, layers, columns, "layers", "heads", "logits added to the difference")

# %% [markdown]
# Four heads of layer 6 do it. `direct_logit_attribution` is the same as one result, with experts apart and a table for
# pandas.

# %%
shares = direct.direct_logit_attribution(lens, pair.clean_tokens, [pair.logit_difference])
shares.plot(most=12)

# %%
shares.to_pandas().sort_values("share", key=abs, ascending=False).head(8)

# %% [markdown]
# ### Recurrent heads
#
# This model's recurrent layers (Mamba) have channels and no heads, so each is one term. Matrix states (Mamba-2,
# Qwen3-Next, Falcon-H1 and others) have heads, and `stack_head_results` names them beside attention's: `L1S0` is head 0
# of layer 1's state. Here in a Mamba-2 with random weights, whose numbers mean nothing but add up.

# %%
from transformers import Mamba2Config, Mamba2ForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
mamba2 = hl.HybridLens(Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=2, **sizes)))
mamba2_logits, mamba2_cache = mamba2.run_with_cache(torch.arange(12)[None])
heads, names = mamba2_cache.stack_head_results(pos_slice=-1, return_labels=True, incl_remainder=True)
added = mamba2_cache.logit_attrs(heads, 5, 7, pos_slice=-1)
torch.testing.assert_close(added.sum(), mamba2_logits[0, -1, 5] - mamba2_logits[0, -1, 7], atol=1e-4, rtol=1e-4)
Grid(added.T, ["logit 5 − 7"], names, "questions", "heads", "logits")

# %% [markdown]
# ## Activation patching by layer and position
#
# Attribution sees what is written at the last position. What had to happen before? Put the clean run's stream into the
# corrupt run, one layer and position at a time: 0 changes nothing, 1 brings all of the clean answer back. `sweep`
# makes many patches in one forward pass.

# %%
resid = sweeps.sweep(lens, "resid_pre", pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference)
start, stop = pair.clean_prompt.needle_span
last = len(pair.clean_tokens) - 1
shown = [*range(start, stop), *range(last - 8, last + 1)]
position_heatmap(
    resid.normalised[:, shown].tolist(),
    all_layers,
    [resid.axes[1].labels[i] for i in shown],
    "layer",
    "restored",
    1,
    range(stop - start),
).update_layout(height=380)

# %% [markdown]
# The answer stays at the needle's word until layer 6 and is at the last position from layer 7 on. Nothing in between
# holds it: it is moved in one step, by layer 6.

# %%
word = int(resid.normalised[0].argmax())
print(f"at L6 the word holds {resid.normalised[6, word]:.2f} and the last position {resid.normalised[6, last]:.2f};")
print(f"at L7 the word holds {resid.normalised[7, word]:.2f} and the last position {resid.normalised[7, last]:.2f}")
assert start <= word < stop
assert resid.normalised[6, word] > 0.9 > 0.1 > resid.normalised[6, last]
assert resid.normalised[7, last] > 0.9 > 0.1 > resid.normalised[7, word]
elsewhere = [position for position in range(last) if position != word]
assert resid.normalised[:, elsewhere].max() < 0.1

# %% [markdown]
# ## By head
#
# As in TransformerLens: `act_patching` has the names of `transformer_lens.patching`. Its results keep an entry for
# every layer, NaN where a layer has no heads, so that an index is a layer's number.

# %%
patched = patching.get_act_patch_attn_head_out_all_pos(lens, corrupt, cache, logit_difference)
low, high = logit_difference(corrupt_logits), logit_difference(logits)
restored = (patched - low) / (high - low)
Grid(restored, all_layers, columns, "layers", "heads", "restored", limit=1)

# %%
z = sweeps.sweep(lens, "z", pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference)
torch.testing.assert_close(restored[list(lens.cfg.attention_layers)].double(), z.normalised, atol=1e-4, rtol=0)
z

# %% [markdown]
# The heads that patching finds are those that direct attribution found. None of them brings back much alone: the four
# share the work.

# %%
for found in (by_head, z.normalised):
    assert set(found[-1].topk(4).indices.tolist()) == {0, 1, 2, 3}


def four_from_clean(x, hook):
    x[:, :, :4] = cache["z", 6][:, :, :4]
    return x


four = lens.run_with_hooks(corrupt, fwd_hooks=[("blocks.6.attn.hook_z", four_from_clean)])
together = (logit_difference(four) - low) / (high - low)
assert together > 0.95 > 0.3 > z.normalised.max()
print(f"one head restores at most {z.normalised.max():.2f}, the four together {together:.2f}")

# %% [markdown]
# ## What do they look at?
#
# Their patterns, cropped to the needle and the last words of the question, with true positions on the axes. Hover over
# a head to see it large.

# %%
pattern = cache["pattern", 6][0, :4]
texts = [lens.to_string([pair.clean_tokens[i]]) for i in shown]
attention_heads(texts, pattern[:, shown][:, :, shown].numpy(), [f"L6 H{head}" for head in range(4)], positions=shown)

# %% [markdown]
# And what do they take from there? Each value put in alone, by
# layer, shared head and position (the two prompts' tokens, where they differ):

# %%
values = sweeps.sweep(lens, "v_by_position", pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference)
values.to_pandas().sort_values("normalised", ascending=False).head(4)
