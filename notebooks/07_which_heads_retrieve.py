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
# # Which heads retrieve?
#
# "Some Attention is All You Need for Retrieval" silences the attention heads of a hybrid, those of highest entropy
# first, and finds that a few of them are enough to find a needle in a haystack, and that without any the model finds
# nothing. This notebook does the same to the embedded `tiny-jamba`, sixteen heads in two attention layers, and then
# asks which heads they are, in three ways: who looks at the needle, who is missed when taken away alone, and who is
# enough when kept alone. It runs offline in seconds; `hybridlens reproduce` and `hybridlens rankings` do it over many
# prompts, with intervals.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import hybridlens as hl
from analyses import entropy, sparsification, study
from analyses.heads.needle_heads import look
from hybridlens import niah
from hybridlens.display import Grid
from hybridlens.viz import attention_heads
from hybridlens.viz.heads import head_heatmap

lens = hl.load("tiny-jamba")
layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
heads = [(layer, head) for layer in layers for head in range(n_heads)]
lens.cfg

# %% [markdown]
# ## How many heads?
#
# The paper's figure 2 on three prompts: at every step of the answer the k heads of lowest entropy in each layer stay,
# the others put out zeros. *Chance* is the same with the needle left out of the prompt: what the model guesses.

# %%
found = study.fig2(lens, lengths=(150,), depths=(0, 50, 100), heads=(0, 1, 2, 8), phases=("generation",))
found

# %% [markdown]
# Accuracy stays where it was until few heads are left, and at none nothing is left: the Mamba layers, untouched all the
# time, do not make up for them. Three prompts are an example; over a hundred the shipped model keeps 8.6 % at k = 1 and
# 0.0 % at k = 0.
# <!-- from tiny-jamba-study/conditions: mean[phase=generation & k=1 & reading=keep & answering=keep & read=once] in %;
# mean[phase=generation & k=0 & reading=keep & answering=keep & read=once] in % -->
#
# ## Who looks at the needle?
#
# While the answer is given, how much of its attention does each head pay to the needle's tokens?

# %%
(prompt,) = niah.grid(lens.tokenizer, lengths=[150], depths=[50])
answer = lens.generate([prompt.tokens])
said = answer.tokens[0, : int(answer.lengths[0])].tolist()
assert niah.score(answer.text[0]) == 5.0
seen = look(lens, prompt.tokens, said, prompt.needle_spans)
seen.ranking.plot()

# %% [markdown]
# Those that look most, each with what it looks at: the needle's text stands along both axes, then the question and the
# answer. A retrieval head has a diagonal there: while a word of the needle is written, it looks at that word's place.

# %%
top = seen.ranking.order[:3]
patterns = seen.patterns[[layers.index(layer) for layer, _ in top], [head for _, head in top]]
labels = [f"L{layer} H{head}: {100 * seen.ranking.score(layer, head):.0f} %" for layer, head in top]
attention_heads(seen.texts, patterns.numpy(), labels, positions=seen.shown)

# %% [markdown]
# ## Who is missed?
#
# Looking is not writing. Take away each head alone, all sixteen in one batch of sixteen rows, and see how much less
# likely the same answer becomes: log-probability lost, in nats over the whole answer.

# %%
import torch

without = [tuple(other for other in heads if other != head) for head in heads]
rows = torch.tensor([[*prompt.tokens, *said]] * (len(heads) + 1))
with torch.no_grad():
    logits = lens.prefill(rows, edits=sparsification.keep_each(lens, [*without, None])).logits
start = len(prompt.tokens)
logprobs = logits[:, start - 1 : -1].log_softmax(-1).gather(-1, rows[:, start:, None]).sum((1, 2))
lost = (logprobs[-1] - logprobs[:-1]).reshape(len(layers), n_heads)
head_heatmap(lost.tolist(), layers, "nats lost", -float(lost.abs().max()), float(lost.abs().max())).update_layout(
    height=220
)

# %% [markdown]
# Hardly any is missed. Heads that do the same work stand in for each other, and hide when they are taken away one by
# one; a ranking by what single heads are worth says little here. So ask the other way round.
#
# ## Who is enough?
#
# Keep the best n of all sixteen by each ranking, silent from the first token of the prompt on. Beside attention to the
# needle and nats lost stands the mean entropy of each head over the prompt, held fixed (the paper chooses anew at every
# query).

# %%
from analyses.heads.ranking import HeadRanking

rankings = {
    "attention to the needle": seen.ranking,
    "missed when taken away": HeadRanking(lost, layers, "nats lost alone", lower_is_better=False),
    "entropy, held fixed": entropy.rank_heads(lens, [list(prompt.tokens)]),
}
prompts = niah.grid(lens.tokenizer, lengths=[150], depths=[0, 100], seed=1)
sizes = (16, 4, 2, 1)
cases = [(name, n, prompt) for name in rankings for n in sizes for prompt in prompts]
chosen = [rankings[name].order[:n] for name, n, _ in cases]  # each row of the batch keeps heads of its own
edits = sparsification.keep_each(lens, chosen)
texts = lens.generate([prompt.tokens for *_, prompt in cases], max_new_tokens=24, edits=edits).text
kept = dict.fromkeys([(name, n) for name, n, _ in cases], 0.0)
for (name, n, _), text in zip(cases, texts, strict=True):
    kept[name, n] += niah.score(text) / (5 * len(prompts))
values = [[kept[name, n] for n in sizes] for name in rankings]
Grid(values, list(rankings), [str(n) for n in sizes], "rankings", "heads kept", "accuracy, 0 to 1")

# %% [markdown]
# The two heads that look at the needle most, both of layer 6, are enough by themselves. (Two more may be worse than
# two: a head that is added without those it works with disturbs.) Over more prompts, and beside rankings from the
# weights alone, `hybridlens rankings --model tiny-jamba --prompts 30` decides it. What such a head is made of, and who
# tells its keys which token stood before, is `02_head_circuits`; what carries the needle to it,
# `03_patching_and_caches`.

# %%
assert kept["attention to the needle", 2] == 1.0
assert kept["attention to the needle", 1] < 0.5
seen.ranking.order[:2]
