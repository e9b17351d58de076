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
# # Where does the needle live?
#
# A hybrid remembers in two ways: attention layers keep a key and a value of every token they have read, recurrent
# layers keep one state of fixed size. When such a model finds a needle, which of the two held it, in which layer and
# head, and who brought it there? This notebook asks by exchange: put activations, and then whole memories, of one
# prompt into another, and see which needle is told. Everything runs offline on the embedded `tiny-recurrentgemma`,
# whose attention sees 256 tokens back; `hybridlens patch` and `hybridlens crossover` do the same with reports.

# %%
from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    # %pip install --quiet hybridlens
    print("hybridlens was installed")

# %%
import hybridlens as hl
from analyses import kv_cache
from analyses.patching import direct, edges, pairs, sweeps
from analyses.patching.agreement import agreement
from analyses.patching.gradients import attribution_sweep
from hybridlens.viz.positions import position_heatmap

lens = hl.load("tiny-recurrentgemma")
print("attention in", lens.cfg.attention_layers, "- recurrent layers", lens.cfg.ssm_layers)

# %% [markdown]
# ## Two prompts that differ in the answer alone
#
# The same text and the same question, with a needle of the same form. Both answers begin alike, so their beginning is
# put behind both prompts: the last position is where they part.

# %%
(needles,) = kv_cache.needle_pairs(["paper"])
pair = pairs.other_needle(lens, needles.needle_a, needles.needle_b, length=150, depth=50)
clean, corrupt, metric = pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference
pair

# %% [markdown]
# ## Values of the clean run, put into the corrupt one
#
# One patch at a time, many in one forward pass. A result is 0 where nothing happens and 1 where the clean run comes
# back whole. First by layer and head: values (one shared head in each layer) and what each of the heads puts out.

# %%
by_head = {name: sweeps.sweep(lens, name, clean, corrupt, metric) for name in ("k", "v", "z")}
for name, found in by_head.items():
    (where, _), share = found.top(1)[0], float(found.normalised.max())
    print(f"{name}: at most {share:.2f} of the difference, at layer and head {where}")
by_head["z"].plot()

# %% [markdown]
# The values of one layer bring nearly all of it back, the keys nothing: what is exchanged is *what* is read, not where
# to look. No single head does it alone; several read the same value. And the values of which token?

# %%
found = sweeps.sweep(lens, "v_by_position", clean, corrupt, metric)
values = found.normalised[:, 0]
start, stop = pair.clean_prompt.needle_spans[0]
labels = found.axes[2].labels[start:stop]
position_heatmap(
    values[:, start:stop].tolist(), [f"L{layer}" for layer in lens.cfg.attention_layers], labels, "layer", "restored", 1
).update_layout(height=300)

# %% [markdown]
# One token's value. Recurrent states, patched in the same way, hold next to nothing of it: a state that is put in at
# one position goes on from there, so this is all that one recurrent layer could have carried to the end.

# %%
state = sweeps.sweep(lens, "state", clean, corrupt, metric)
print(f"values {float(found.normalised.max()):.2f}, recurrent states {float(state.normalised.max()):.2f}")
assert found.normalised.max() > 0.9 > 0.1 > state.normalised.max()

# %% [markdown]
# ## The same from gradients, for nothing
#
# Two passes estimate every patch of a sweep at once. How well, is measured on the same pair.

# %%
for name, exact in {"v_by_position": found, "state": state, "z": by_head["z"]}.items():
    agrees = agreement(attribution_sweep(lens, name, clean, corrupt, metric), exact)
    print(f"{name:14} correlation {agrees.pearson:.2f}, largest error {agrees.largest_error:.2f}")

# %% [markdown]
# Edges say who told whom: which writer's difference reaches which reader directly. Read together they are the way of
# the needle: an MLP at the needle's token, the value of one layer, its heads, the logits. Below it, what the heads
# then add to the answer's logit; all shares of the model add up to it.

# %%
edges.edge_attribution(lens, clean, corrupt, metric)

# %%
shares = direct.direct_logit_attribution(lens, clean, [metric])
print(f"all shares {float(shares.total[0, 0]):.2f}, the model's own {float(shares.before_cap[0, 0]):.2f}")
shares

# %% [markdown]
# ## Crossover: whose memory is believed?
#
# A sharper test. Read both prompts, take keys and values from one and the recurrent states from the other, read the
# last token, and let the model answer. Needle A or needle B?

# %%
needle_pairs = kv_cache.needle_pairs(["paper", "oslo", "code", "treasure"])
prompts = kv_cache.prompt_pairs(lens.tokenizer, [150], [0, 50], needle_pairs)
told = kv_cache.crossover(lens, prompts)
assert told.shares("kv B, conv A, recurrent A").b.mean == 1.0
told

# %% [markdown]
# The answer follows keys and values, whatever the recurrent layers remember. Layer by layer: which layer's keys and
# values are enough against everything else? Either of the two, depending on the needle.

# %%
for mix, shares_of in told.by_mix().items():
    if mix.startswith("only kv of layer"):
        print(f"{mix}: tells B in {100 * shares_of.b.mean:.0f} % of {shares_of.n} prompts")

# %% [markdown]
# ## Where is it written?
#
# Drop keys and values, eight positions at a time, and see how much of the answer's log-probability is lost; then reset
# the recurrent layers in the middle of the prompt and read on.

# %%
dropped = kv_cache.drop_map(lens, prompts[1], block=8, max_new_tokens=0)
places = [f"{a}–{b - 1} {dropped.tokens[a]}…{dropped.tokens[b - 1]}" for a, b in dropped.places]
marked = [i for i, (a, b) in enumerate(dropped.places) if a < dropped.spans[0][1] and b > dropped.spans[0][0]]
lost = dropped.damage.tolist()
position_heatmap(lost, dropped.groups, places, "", "nats lost", None, marked).update_layout(height=320)

# %%
reset = kv_cache.recurrent_map(lens, prompts[1], every=16, max_new_tokens=0)
for name, loss in (("keys and values dropped", dropped), ("recurrent layers reset", reset)):
    regions = ", ".join(f"{region} {nats:.1f}" for region, nats in loss.regions()["all layers"].items())
    print(f"{name}: nats lost on average, by place: {regions}")

# %% [markdown]
# ## Surgery while it answers
#
# The same tools act at any decode step. In the middle of the answer, before its thirteenth token, the needle's keys and
# values go: what has been said stands, and the rest is made up.

# %%
prompt, span = list(prompts[1].a), list(range(*prompts[1].spans[0]))
forget = kv_cache.Surgery(lambda state: kv_cache.drop(state, span), at=12)
print("untouched:", kv_cache.generate_with(lens, [prompt]).text[0])
kv_cache.generate_with(lens, [prompt], [forget])

# %% [markdown]
# ## Beyond the window
#
# At 320 tokens an early needle is out of sight. Does anything keep it: the values of later tokens that have looked at
# it, or the recurrent states?

# %%
far = kv_cache.prompt_pairs(lens.tokenizer, [320], [0], needle_pairs)
outside = kv_cache.crossover(lens, far, kv_cache.mixes(lens.cfg, by_layer=False))
for mix in ("kv A, conv A, recurrent A", "kv B, conv B, recurrent B"):
    found_of = outside.shares(mix, inside=False)
    print(
        f"{mix}: tells its needle in {100 * max(found_of.a.mean, found_of.b.mean):.0f} %, "
        f"leaning towards B by {found_of.leaning:+.2f} nats"
    )

# %% [markdown]
# Nothing does. The answers tell neither needle, and which of the two prompts was read makes next to no difference even
# to the log-probabilities. This tiny model reads needles with attention alone, as the paper says of large ones;
# whether a large one does, `hybridlens crossover --model google/recurrentgemma-2b` can tell.
