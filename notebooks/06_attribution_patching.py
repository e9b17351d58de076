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
# # Attribution patching
#
# Activation patching makes a forward pass for every patch. Attribution patching estimates all of them from gradients:
# two passes forward and one back, however many patches (Nanda 2023, "Attribution Patching"). It is a straight line
# through a curved function, so this notebook, after TransformerLens' demo, measures on `tiny-recurrentgemma` where it
# is right and where it is not. Then it goes from places to *edges* between parts, takes the best of them as a circuit,
# and runs that: does the circuit do what the model does?

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import torch

import hybridlens as hl
from analyses import kv_cache
from analyses.patching import pairs, sweeps
from analyses.patching.agreement import agreement
from analyses.patching.circuit_choice import choose_circuit
from analyses.patching.circuit_curves import circuit_curves
from analyses.patching.circuit_runs import run_circuits
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_sweep
from hybridlens.display import Table
from hybridlens.viz.positions import position_heatmap

lens = hl.load("tiny-recurrentgemma")
(needles,) = kv_cache.needle_pairs(["paper"])
pair = pairs.other_needle(lens, needles.needle_a, needles.needle_b, length=150, depth=50)
clean, corrupt, metric = pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference
pair

# %% [markdown]
# ## By hand, as in TransformerLens
#
# Hooks keep the activations of both runs and, of the corrupt one, their gradients; then an estimate is
# (clean − corrupt) · gradient. Here of what each head puts out, summed over positions.

# %%
name = "blocks.5.attn.hook_z"
gradients = {}


def keep(gradient, hook):
    gradients[hook.name] = gradient


_, clean_cache = lens.run_with_cache(torch.tensor([clean]), names_filter=name)
corrupt_cache, caching, _ = lens.get_caching_hooks(name)
right, wrong = pair.answers
with lens.hooks(fwd_hooks=caching, bwd_hooks=[(name, keep)]):
    logits = lens(torch.tensor([corrupt]))
    (logits[0, -1, right] - logits[0, -1, wrong]).backward()
by_hand = ((clean_cache[name] - corrupt_cache[name]) * gradients[name]).detach().sum(dim=(0, 1, 3))

# %% [markdown]
# `attribution_sweep` does this for every layer and every kind of place, recurrent states included.

# %%
estimated = attribution_sweep(lens, "z", clean, corrupt, metric)
torch.testing.assert_close(by_hand.double(), estimated.raw[-1] - estimated.corrupt, atol=1e-4, rtol=1e-4)
estimated

# %% [markdown]
# ## Against exact patching
#
# The same sweep measured, patch by patch. Both are on the scale from 0 (corrupt) to 1 (clean).

# %%
exact = sweeps.sweep(lens, "z", clean, corrupt, metric)
exact

# %%
assert agreement(estimated, exact).pearson > 0.99
agreement(estimated, exact)

# %% [markdown]
# Heads are estimated almost perfectly. Other places are not. The residual stream, say, by layer and position around the
# needle: first measured, then estimated.

# %%
measured_of, estimated_of = {"z": exact}, {"z": estimated}
for kind in ("v_by_position", "mlp_out", "state", "resid_pre"):
    measured_of[kind] = sweeps.sweep(lens, kind, clean, corrupt, metric)
    estimated_of[kind] = attribution_sweep(lens, kind, clean, corrupt, metric)
start, stop = pair.clean_prompt.needle_span
shown = [*range(start, stop), *range(len(clean) - 5, len(clean))]


def around_the_needle(found):
    values = found.normalised[:, shown]
    rows, columns = [f"L{layer}" for layer in range(lens.cfg.n_layers)], [found.axes[1].labels[i] for i in shown]
    return position_heatmap(values.tolist(), rows, columns, "layer", "restored", 1.5, range(stop - start))


around_the_needle(measured_of["resid_pre"]).update_layout(height=340)

# %%
around_the_needle(estimated_of["resid_pre"]).update_layout(height=340)

# %% [markdown]
# The place is right, the size is not: a whole stream is a large change, and the line misses by up to half of the
# difference between the runs.

# %%
agrees = {kind: agreement(estimated_of[kind], measured_of[kind]) for kind in measured_of}
rows = [(kind, fit.patches, fit.pearson, fit.spearman, fit.largest_error) for kind, fit in agrees.items()]
assert agrees["resid_pre"].largest_error > 0.4
Table(
    ("sweep", "patches", "correlation", "of ranks", "largest error"),
    rows,
    {"largest error": "of an estimate, on the scale from 0 (corrupt) to 1 (clean)"},
)

# %% [markdown]
# Integrated gradients mend it: instead of one slope, the mean of slopes on the way from one prompt's embeddings to the
# other's.

# %%
steps = (1, 5, 20)
errors = [
    agreement(attribution_sweep(lens, "resid_pre", clean, corrupt, metric, steps=n), measured_of["resid_pre"])
    for n in steps
]
assert max(fit.largest_error for fit in errors) < 0.1 < agrees["resid_pre"].largest_error
rows = [(n, fit.pearson, fit.largest_error) for n, fit in zip(steps, errors, strict=True)]
Table(("steps", "correlation", "largest error"), rows)

# %% [markdown]
# ## Edges
#
# From places to paths: what would each writer's difference change at each reader, directly? With integrated gradients
# this is EAP-IG (Hanna et al. 2024). A writer is the embedding, a head, a recurrent layer or an MLP; a reader what
# one of these reads, queries, keys and values apart, or the logits.

# %%
edges = edge_attribution(lens, clean, corrupt, metric, steps=5)
edges

# %%
edges.to_pandas().sort_values("score", key=abs, ascending=False).head(8)

# %% [markdown]
# ## A circuit
#
# The best edges, back from the logits. What is not in the circuit carries what it carries in the corrupt run. Its
# *faithfulness* is the share of the difference between the runs that the circuit keeps.

# %%
circuit = choose_circuit(lens, edges, 37)
kept = run_circuits(lens, clean, corrupt, metric, [circuit])
assert kept.normalised[0] > 0.95
print(f"kept: {kept.normalised[0]:.3f} of the difference")
circuit

# %% [markdown]
# ## Faithful and complete, by size
#
# A circuit may be faithful and still leave half of the work out, done twice in the model. So its complement is run too,
# all other edges: it is *complete* where that does nothing. Both beside random circuits of the same sizes, each edge of
# which is on a path from the embedding to the logits.

# %%
curves = circuit_curves(lens, clean, corrupt, metric, edges, sizes=(3, 6, 12, 18, 25, 37, 74, 184), draws=5)
curves

# %%
curves.plot()

# %%
table = curves.to_pandas()
table[["edges", "faithfulness", "random faithfulness, mean", "completeness", "random completeness, mean"]].round(3)

# %%
size = int(table.query("faithfulness > 0.95").edges.min())
row = table.set_index("edges").loc[size]
assert size < 0.15 * 368
assert row["completeness"] < 0.05
assert row["random faithfulness, mean"] < 0.1
print(f"{size} edges are enough for 95 % of the difference, {100 * row['completeness']:.0f} % is left without them;")
print(f"random circuits of that size keep {100 * row['random faithfulness, mean']:.0f} %")

# %% [markdown]
# A tenth of the edges is the circuit, on this one pair: of other prompts it says nothing. `choose_circuit`
# and `circuit_curves` take the edges of several pairs as well.
