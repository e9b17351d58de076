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
# # Heads by their weights
#
# The paper ranks attention heads by entropy while the model runs, and keeps the best. This notebook judges them
# before any run, from their weights, as in "A mathematical framework for transformer circuits" and "In-context
# learning and induction heads": does a head copy what it sees, does it look for tokens equal to its own, and who
# writes what it reads? In a hybrid the writer may be a recurrent layer's convolution. Everything runs offline, on
# the embedded `tiny-recurrentgemma`; for another checkpoint change the name, or read weights straight from files
# with `hl.load_weights(folder)`.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import hybridlens as hl
from analyses import circuits, entropy, sparsification
from analyses.experiment.filler import filler_tokens
from analyses.heads.needle_heads import look
from hybridlens import niah
from hybridlens.display import Grid
from hybridlens.viz import attention_heads
from hybridlens.viz.circuits import Edge, Node, composition_graph, distance_curves, eigenvalue_plane
from hybridlens.viz.heads import head_heatmap, pair_heatmap

lens = hl.load("tiny-recurrentgemma")
text = filler_tokens(lens, 256, 8)
found = circuits.circuits(lens, text, model="tiny-recurrentgemma")
heads = [(layer, head) for layer in found.layers for head in range(found.n_heads)]
found

# %% [markdown]
# Each number is a ranking of the heads:

# %%
found.ranking("retrieval")

# %% [markdown]
# ## Does a head copy?
#
# From a token seen to the logits a head is the matrix W_E W_V W_O W_U over the vocabulary. If its eigenvalues are
# positive, what the head looks at becomes more likely next. Its score is Σλ ÷ Σ|λ|: 1 where all are positive, −1
# where all are negative. The matrix itself, which a large vocabulary makes huge, is never formed.

# %%
head_heatmap(found.copying.tolist(), found.layers, "copying", -1, 1).update_layout(height=220)

# %% [markdown]
# The same as points in the complex plane: the head that copies most and the one that copies least. The distance
# from the centre is the logarithm of |λ|.

# %%
order = found.ranking("copying").order
groups = {
    f"L{layer} H{head}": found.ov_eigenvalues[found.layers.index(layer), head].tolist()
    for layer, head in (order[0], order[-1])
}
eigenvalue_plane(groups, decades=4).update_layout(width=520, height=520)

# %% [markdown]
# ## What does it look for?
#
# From a token to the key it looks for it is W_E W_Q W_Kᵀ W_Eᵀ. Positive eigenvalues mean: its own equal. Rotary
# embedding turns part of the query with distance, so matching is a function of it.

# %%
best = found.ranking("matching").order[:4]
curves = {f"L{layer} H{head}": found.matching[found.layers.index(layer), head].tolist() for layer, head in best}
distance_curves(curves, found.distances, "matching, Σλ ÷ Σ|λ|", y_range=(-1, 1)).update_layout(height=380)

# %% [markdown]
# ## Who writes what it reads?
#
# To repeat what followed an earlier occurrence of a token, a head has to find the place *after* that occurrence: its
# keys must say which token stood before. In a transformer an earlier head puts that there. Here a recurrent layer's
# convolution can: its tap at lag 1 reads the token before. K-composition, beyond what random matrices would have,
# says how much of each writer the keys of each head read.

# %%
k = 1  # of the kinds q, k, v
excess = found.composition.excess_recurrent[k].flatten(0, 1).flatten(1).T
lags = found.lag_share.shape[1]
writers = [f"L{layer} lag {lag}" for layer in found.ssm_layers for lag in range(lags)]
readers = [f"L{layer} H{head}" for layer, head in heads]
pair_heatmap(excess.tolist(), writers, readers, ("writer", "reader"), "K-composition").update_layout(height=520)

# %%
nodes = [Node(name, int(name.split()[0][1:]), name.split(" ", 1)[1], True) for name in writers]
nodes += [Node(name, int(name.split()[0][1:]), name.split()[1], False) for name in readers]
edges = [
    Edge(writer, reader, "k", float(excess[w, r]))
    for w, writer in enumerate(writers)
    for r, reader in enumerate(readers)
    if excess[w, r] > 0
]
composition_graph(nodes, edges, most=20).update_layout(height=480)

# %% [markdown]
# Through which writer does each head induct, and how much of that layer's path is about the token before?

# %%
for layer, head in found.ranking("induction").order[:4]:
    place = int(found.induction_writer[found.layers.index(layer), head])
    print(f"L{layer} H{head}: {found.ranking('induction').score(layer, head):.3f} through {found.writers[place]}")
for layer, share in zip(found.ssm_layers, found.lag_share.tolist(), strict=True):
    print(f"L{layer}: " + ", ".join(f"lag {lag} {100 * part:.0f} %" for lag, part in enumerate(share)))

# %% [markdown]
# A warning goes with it. Recurrent layers are not linear; here their gates are held at their means over real text,
# and what the state carries over is left out. This is how far that is from what they write (0: exact, 1: no better
# than a constant). It says what a layer's convolution can pass on, and not all that the layer does.

# %%
assert found.path_error is not None
print(found.linearised, [round(error, 2) for error in found.path_error.tolist()])

# %% [markdown]
# ## Which heads keep retrieval?
#
# Retrieval strength joins copying with matching through the writer of the token before. It has seen no prompt. Keep
# its best n heads of the 16, silence the others while reading and answering, and look for the needle; beside it the
# paper's criterion, entropy, averaged over these same prompts and then held fixed.

# %%
prompts = niah.grid(lens.tokenizer, lengths=[150, 200], depths=[0, 50, 100])
rows = [list(prompt.tokens) for prompt in prompts]
sizes = (16, 12, 8, 6, 5, 4, 2)
rankings = {"retrieval strength": found.ranking("retrieval"), "entropy": entropy.rank_heads(lens, rows)}
accuracy = {}
for name, ranking in rankings.items():
    for n in sizes:
        edits = sparsification.keep_heads(lens, ranking, n)
        scores = [niah.score(answer) for answer in lens.generate(rows, max_new_tokens=24, edits=edits).text]
        accuracy[name, n] = sum(scores) / (5 * len(scores))
assert accuracy["retrieval strength", 16] == accuracy["entropy", 16] == 1.0
values = [[accuracy[name, n] for n in sizes] for name in rankings]
Grid(values, list(rankings), [str(n) for n in sizes], "rankings", "heads kept", "accuracy, 0 to 1")

# %% [markdown]
# Six prompts are an example. `hybridlens rankings` measures it: more rankings, intervals, what else is lost.
#
# ## What the top heads look at
#
# The patterns of the four heads of most retrieval strength on one prompt, cropped to the needle, the question and
# the answer, each under its score.

# %%
answer = lens.generate(rows[1:2], max_new_tokens=20)
seen = look(lens, rows[1], answer.tokens[0, : int(answer.lengths[0])].tolist(), prompts[1].needle_spans)
top = found.ranking("retrieval").order[:4]
for layer, head in top:
    print(f"L{layer} H{head}: attention to the needle {100 * seen.ranking.score(layer, head):.0f} %")
patterns = seen.patterns[[found.layers.index(layer) for layer, _ in top], [head for _, head in top]]
labels = [f"L{layer} H{head}: {found.ranking('retrieval').score(layer, head):.2f}" for layer, head in top]
attention_heads(seen.texts, patterns.numpy(), labels, positions=seen.shown)

# %% [markdown]
# ## Is it true of the model at work?
#
# The weights say that in `tiny-jamba`, too, retrieval heads read the token before through a recurrent layer's tap at
# lag 1, and which layer's. A prediction: cut that one tap, a number a channel, and retrieval suffers; cut any other
# layer's tap at that lag and it does not.

# %%
import copy

import torch

jamba = hl.load("tiny-jamba")
predicted = circuits.circuits(jamba, model="tiny-jamba")
layer, head = predicted.ranking("retrieval").order[0]
writer = predicted.writers[int(predicted.induction_writer[predicted.layers.index(layer), head])]
print(f"L{layer} H{head} (retrieval strength {predicted.ranking('retrieval').score(layer, head):.2f}) reads {writer}")
prompts = niah.grid(jamba.tokenizer, lengths=[200, 400], depths=[0, 33, 67, 100])
retrieved = {}
for layer in jamba.cfg.ssm_layers:
    cut = copy.deepcopy(jamba.hf_model)
    with torch.no_grad():
        cut.model.layers[layer].mamba.conv1d.weight[:, 0, -2] = 0  # the last tap is the token itself
    answers = hl.HybridLens(cut, jamba.tokenizer).generate([list(p.tokens) for p in prompts], max_new_tokens=24).text
    retrieved[f"L{layer} lag 1"] = sum(map(niah.score, answers)) / (5 * len(answers))
    print(f"without L{layer}'s tap at lag 1: {100 * retrieved[f'L{layer} lag 1']:3.0f} %")
assert min(retrieved, key=lambda name: retrieved[name]) == writer
