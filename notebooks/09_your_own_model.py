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
# # Your own model
#
# A checkpoint of your own, or one of the Hugging Face hub: open it, be sure that it is read truly, give it a needle of
# your own, and ask the first questions of it. A folder in Hugging Face's format stands in here, `tiny-granite` of this
# package (Mamba-2 and attention); put yours in its place, or a hub id such as `"ibm-granite/granite-4.0-h-350m"`. Which
# families open, and what works for each, `hybridlens families` says.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from analyses import kv_cache, sparsification
from hybridlens import niah, tiny
from hybridlens.display import Grid

torch.set_grad_enabled(False)
MODEL = str(tiny.path("tiny-granite"))  # a folder, or a hub id
lens = hl.load(MODEL)
lens

# %% [markdown]
# `hl.load` takes `dtype`, `device` and `device_map` like Transformers, a PEFT `adapter`, and a `revision`. A model that
# is in memory already, from a training say, is opened where it stands: `hl.HybridLens(model, tokenizer)`. What it is
# made of, layer by layer:

# %%
lens.cfg

# %% [markdown]
# ## Is it read truly?
#
# Nothing here is a second implementation that has to be trusted: the model is Hugging Face's own, with its weights, and
# the lens computes the same logits. Look for yourself, on any text:

# %%
tokens = lens.to_tokens("What is the best thing to do in Lima?")
theirs = lens.hf_model(tokens).logits
mine = lens(tokens)
error = float((mine - theirs).abs().max() / theirs.abs().max())
assert error < 1e-4
print(f"largest difference to the untouched model: {error:.1e} of the largest logit")

# %% [markdown]
# And an edit acts: a hook that gives zeros for one head changes the logits, one that gives back what it got changes no
# bit.

# %%
point = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_z"


def without_head_0(z, hook):
    z = z.clone()
    z[:, :, 0] = 0
    return z


same = lens.run_with_hooks(tokens, fwd_hooks=[(point, lambda z, hook: z.clone())])
changed = lens.run_with_hooks(tokens, fwd_hooks=[(point, without_head_0)])
assert torch.equal(same, mine)
print(f"{point}: without head 0 a logit changes by up to {float((changed - mine).abs().max()):.2f}")

# %% [markdown]
# ## Every name
#
# The names are the same for all families; what a layer does not have it does not list. The first layer of each kind:

# %%
shown = {lens.cfg.attention_layers[0], lens.cfg.ssm_layers[0]}
table = lens.hook_points.to_pandas()
table[table["name"].str.contains("|".join(f"blocks[.]{layer}[.]" for layer in shown))].head(60)

# %% [markdown]
# ## A needle of your own
#
# A sentence to hide, a question, and how an answer is graded: two phrases of it are worth points, the whole sentence
# five. A vocabulary as small as the tiny models' does not know every word; with a real tokenizer write what you like,
# and `niah.read_haystack(folder)` hides it in your own texts.

# %%
needle = niah.best_thing("mine", "Lima", "sail a boat", "rest", "Hyde Park", "cold")
prompts = niah.grid(lens.tokenizer, lengths=[150, 300], depths=[0, 50, 100], needle=needle)
rows = [prompt.tokens for prompt in prompts]
answers = lens.generate(rows, max_new_tokens=24)
for prompt, text in zip(prompts, answers.text, strict=True):
    print(f"{prompt.length} tokens, depth {prompt.depth:3.0f} %: {niah.score(text, needle.rubric)} of 5  {text}")

# %% [markdown]
# What would it have guessed? The same prompts without the needle say so, and everything below has to be read against
# that.

# %%
controls = niah.controls(lens.tokenizer, lengths=[150, 300], depths=[0, 50, 100], needle=needle)
guessed = lens.generate([prompt.tokens for prompt in controls], max_new_tokens=24).text
chance = sum(niah.score(text, needle.rubric) for text in guessed) / (5 * len(guessed))
print(f"chance: {chance:.0%}")

# %% [markdown]
# ## The first questions
#
# The paper's: with the k heads of lowest entropy kept in every attention layer while answering, how much is retrieved?

# %%
ks = (lens.cfg.n_heads, 4, 2, 0)
accuracy = []
for k in ks:
    texts = lens.generate(rows, max_new_tokens=24, edits=sparsification.top_k(lens, k)).text
    accuracy.append(sum(niah.score(text, needle.rubric) for text in texts) / (5 * len(texts)))
Grid([accuracy], ["accuracy"], [str(k) for k in ks], "", "heads kept in each layer", "accuracy, 0 to 1")

# %% [markdown]
# And where it is remembered: two prompts that differ in the needle alone, keys and values of one, recurrent states of
# the other. Which needle is told?

# %%
told = kv_cache.crossover(
    lens,
    kv_cache.prompt_pairs(lens.tokenizer, [150], [50], kv_cache.needle_pairs(["paper", "oslo"])),
    kv_cache.mixes(lens.cfg, by_layer=False),
)
told

# %% [markdown]
# ## All of it, with intervals
#
# Few prompts are an example. The commands take the same folder or hub id, go on where they were stopped, and run on a
# GPU, on a node or on Slurm:
#
#     hybridlens plan --model MODEL                              # what a study would take, before any weight is there
#     hybridlens reproduce all --model MODEL --out results/mine-study
#     hybridlens crossover --model MODEL --out results/mine-crossover
#     hybridlens circuits --model MODEL --out results/mine-circuits
#     hybridlens report results                                  # one page that leads to all of it
#
# What loads a hub model's code is not run unless you say so; weights are read from safetensors files alone.
