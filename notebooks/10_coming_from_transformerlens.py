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
# # Coming from TransformerLens
#
# What you know is here under the names you know: `run_with_cache`, `run_with_hooks`, `add_hook`, `W_Q`, `logit_attrs`,
# `patching.get_act_patch_…`. What is new is that the layers are of several kinds: some have attention, some a recurrent
# layer, some both, and besides the residual stream there is a state. This notebook is a first morning's work in
# TransformerLens' way on the embedded `tiny-jamba`, and stops wherever something is otherwise. The whole table of
# calls, side by side, is docs/coming-from.md; their exploratory analysis demo on a hybrid is `04_exploratory_analysis`,
# attribution patching `06_attribution_patching`.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from hybridlens import act_patching as patching
from hybridlens import niah
from hybridlens.display import Grid, Table
from hybridlens.viz import attention_heads

torch.set_grad_enabled(False)
model = hl.load("tiny-jamba")  # HookedTransformer.from_pretrained, TransformerBridge.boot_transformers
model.cfg

# %% [markdown]
# Weights are as Hugging Face has them: nothing is folded or centred on loading, so that what you read is what the
# untouched model computes. `model.weights(folded=True)` gives the folded ones.
#
# ## Run with cache

# %%
prompt, other = (
    f"QUESTION: What is the capital of {country}?\n\nANSWER: The capital of {country} is"
    for country in ("Peru", "Italy")
)
tokens = model.to_tokens(prompt)
logits, cache = model.run_with_cache(tokens)
loss = model(tokens, return_type="loss")
print(model.to_str_tokens(prompt))
print(f"loss {float(loss):.3f} nats; most likely next: {model.to_string([int(logits[0, -1].argmax())])!r}")
cache

# %% [markdown]
# Names and shorthands are theirs. **Otherwise:** not every layer has attention, and asking one that has none says which
# have.

# %%
assert cache["pattern", 2] is cache["blocks.2.attn.hook_pattern"]
try:
    cache["pattern", 0]
except hl.errors.HybridLensError as error:
    print(error)

# %%
cache["pattern", 2].shape, cache["mixer_out", 0].shape, cache["ssm_out", 0].shape

# %% [markdown]
# `hook_attn_out`, `hook_ssm_out` and `hook_mlp_out` are what the parts of a layer write; `hook_mixer_out` is the first
# two by one name. Stacks go over the layers that have the thing:

# %%
cache.stack_activation("z").shape, cache.layers_with("z"), model.W_Q.shape, model.attn_layers

# %% [markdown]
# ## What is new: the state
#
# A recurrent layer's points stand beside attention's: what it writes, how it decays, the state after every token, and
# what is read from it.

# %%
points = [name for name in model.hook_points if name.startswith("blocks.1.ssm.")]
Table(("point", "axes"), [(name, " ".join(model.hook_points[name].axes)) for name in points], most=40)

# %%
state = cache["state", 1]  # [batch pos channel state]
state.shape

# %% [markdown]
# ## Hooks
#
# A hook function takes a tensor and the point, and returns a replacement or None. **Otherwise:** an edited state
# persists; the tokens behind it go on from what you made of it, as they should in a recurrence.


# %%
def forget(state, hook):
    state = state.clone()
    state[:, 4] = 0  # what layer 1 remembers after the fifth token
    return state


edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.ssm.hook_state", forget)])
change = (edited - logits).abs().amax(-1)[0]
Grid([change.tolist()], ["change"], model.to_str_tokens(prompt), "", "token", "largest change of a logit")

# %% [markdown]
# Nothing changes before the fifth token, everything may behind it. `model.add_hook` and `with model.hooks(...)` are
# theirs as well; they act in decode steps and in traces, too.
#
# ## Generate
#
# **Otherwise:** greedy unless asked to draw, and 40 tokens. Every hook point fires in every decode step, and an edit
# may be of one phase alone: heads silenced while answering, and not while reading, is the paper's first experiment.

# %%
silent = [
    hl.Edit(f"blocks.{layer}.attn.hook_z", lambda z, hook: torch.zeros_like(z), phase="decode")
    for layer in model.cfg.attention_layers
]
(needle,) = niah.grid(model.tokenizer, lengths=[150], depths=[50])
for ids in (tokens[0].tolist(), list(needle.tokens)):
    for name, edits in (("untouched", []), ("without attention", silent)):
        print(f"{name}: {model.generate([ids], max_new_tokens=22, edits=edits).text[0]}")

# %% [markdown]
# The capital, learned in training, is told without attention as well; the needle, which stands in the prompt alone, is
# not.
#
# What a `past_kv_cache` was is a `HybridState`: keys and values, recurrent states and the inputs of convolutions, of
# every layer, in one value that can be saved, cut, joined and read on from by any number of tokens.

# %%
held = model.prefill(tokens[:, :-2]).state
rest = model.extend(held, tokens[:, -2:]).logits
assert torch.allclose(rest, logits[:, -2:], atol=1e-4)
held

# %% [markdown]
# ## Direct logit attribution
#
# The stream is a sum here as there; recurrent layers are summands of their own. The parts add up to the logit.

# %%
answer = int(logits[0, -1].argmax())
stack, labels = cache.decompose_resid(return_labels=True)
shares = cache.logit_attrs(stack, answer)[:, 0, -1]
assert torch.allclose(shares.sum(), logits[0, -1, answer], atol=1e-3)
Grid([shares.tolist()], [model.to_string([answer])], list(labels), "", "part", "logit, added up")

# %% [markdown]
# ## Activation patching
#
# Their function names, from `hybridlens.act_patching`; `transformer_lens.patching` itself works on a lens, too. Rows
# are layers of any kind, and a sweep over heads has NaN where a layer has none.

# %%
others = model.to_tokens(other)
right, wrong = int(logits[0, -1].argmax()), int(model(others)[0, -1].argmax())


def metric(logits):
    return logits[0, -1, right] - logits[0, -1, wrong]


restored = patching.get_act_patch_resid_pre(model, others, cache, metric)
base, top = float(metric(model(others))), float(metric(logits))
print(f"{model.to_string([right])!r} less {model.to_string([wrong])!r}: {base:.2f} after Italy, {top:.2f} after Peru")
Grid(restored.tolist(), [f"L{i}" for i in range(model.cfg.n_layers)], model.to_str_tokens(other), "layer", "token",
     "logit difference")  # fmt: skip

# %% [markdown]
# Read the last two columns downwards: the country's second mention holds the answer in the lower layers, the last token
# in the upper ones, and most of the way is made in layers 3 and 4. Both are Mamba layers: attention did not carry it,
# which is why silencing it above took the needle and left the capital.
#
# ## A head detector
#
# Scores on random tokens, twice over. Recurrent heads have them as well (`of="recurrent"`): a Mamba layer can tell a
# token which one stood before it.

# %%
from analyses.heads.scores import head_scores

head_scores(model, period=8, rows=2, draws=1).top("induction")

# %%
attention_heads(
    model.to_str_tokens(prompt), cache["pattern", 6][0].numpy(), [f"L6 H{i}" for i in range(model.cfg.n_heads)]
)

# %% [markdown]
# Where a name, a keyword or an argument of TransformerLens is not here, the error says in one line what to type.
