"""What works for a family, a check each: the columns of `hybridlens families`, as functions of a small model.

A check compares with something else than what it checks (the untouched model, plain loops, dense matrices) and gives
the largest error, relative to the largest expected value; it raises where the two differ by more than rounding
explains, and `NotThere` where the family lacks what it is about. `checked` makes a family's row of all of them.
"""

import contextlib
import sys

import pytest
import torch
import transformers
from bounds import GRADIENT, LAYER
from family_case import LENGTH, Case, NotThere, far
from hf_kimi_linear import as_latent
from hf_minimax import new_cache
from hf_reference import FAMILIES as PATHS
from models import ROWS, tokens

from analyses.circuits import circuits
from analyses.circuits.eigen import ov_eigenvalues, qk_eigenvalues
from analyses.circuits.positions import profile
from analyses.circuits.vocabulary import products
from analyses.kv_cache.mixes import mixes
from analyses.patching.metrics import LogitDifference
from analyses.patching.running import activation_patch
from analyses.patching.targets import Target
from hybridlens.families import FAMILIES
from hybridlens.recurrences.kernels.choice import Kernel
from hybridlens.supported import COLUMNS, FamilyRow, Supported, Verdict
from hybridlens.weights import Weights

REASON = 400
"""Letters of a reason that the table keeps."""


def logits(case):
    """Of the untouched model."""
    with torch.no_grad():
        return far(case.lens(case.ids), case.logits, extra=case.extra)


def chunks(case):
    """Read in pieces of 5, 1, 3 and 2: the untouched model's full run, which has no cache."""
    parts, state = [], None
    with torch.no_grad():
        for part in case.ids.split([5, 1, 3, 2], dim=1):
            state, out = case.lens.prefill(part) if state is None else case.lens.extend(state, part)
            parts.append(out)
    return far(torch.cat(parts, dim=1), case.logits, extra=case.extra)


def ragged(case):
    """Rows of unlike length in a batch, and a token after each: the untouched model on each row alone."""
    lengths, after = [LENGTH, 6, 2], torch.tensor([[4], [5], [6]])
    ids, error = tokens(3, LENGTH), 0.0
    with torch.no_grad():
        state, first = case.lens.prefill(ids, lengths=lengths)
        then = case.lens.extend(state, after).logits
    for row, length in enumerate(lengths):
        whole = case.untouched(torch.cat([ids[row : row + 1, :length], after[row : row + 1]], dim=1))[0]
        error = max(error, far(first[row, :length], whole[:-1], extra=case.extra))
        error = max(error, far(then[row], whole[-1:], extra=case.extra))
    return error


def decode_points(case):
    """Every hook point of a token read after a state: the untouched model's value, by its own hooks and plain loops."""
    with torch.no_grad():
        state = case.lens.prefill(case.ids[:, :-1]).state
    seen, _ = case.kept(list(case.lens.hook_points), ids=case.ids[:, -1:], state=state)
    error = 0.0
    for name, value in seen.items():
        axes = case.lens.hook_points[name].axes
        expected = case.truth[name].narrow(axes.index("p"), LENGTH - 1, 1)
        if "k" in axes:
            last = state.positions_in(int(name.split(".")[1]))[0].tolist() if ".attn." in name else []
            expected = expected.index_select(axes.index("k"), torch.tensor([*last, LENGTH - 1]))
        error = max(error, far(value, expected, extra=case.amplified(name), what=name))
    return error


def state_edits(case):
    """A state is doubled at one position: the state in the end is that of a plain loop, and goes on into the next pass.

    The loop takes decays, writes, addresses and strengths as hooks read them; a delta rule writes anew.
    """
    layer, at = case.recurrent("hook_state"), 4
    point, cfg = f"blocks.{layer}.ssm.hook_state", case.lens.hook_points
    axes = cfg[point].axes

    def double(x, hook):
        x = x.clone()
        x[:, at] *= 2
        return x

    seen = {name.rsplit("hook_", 1)[1]: value for name, value in case.run.items() if f"blocks.{layer}.ssm." in name}
    (_, out), state = case.kept("hook_logits", [(point, double)]), torch.zeros_like(seen["state"][:, 0]).double()
    held = cfg[f"blocks.{layer}.ssm.hook_decay"].axes
    for t in range(LENGTH):
        decay = seen["decay"][:, t].double()
        for place, axis in enumerate(axis for axis in axes if axis != "p"):
            decay = decay if axis in held else decay.unsqueeze(place)
        state = decay * state
        if "recall" in seen:
            k, v, beta = (seen[part][:, t].double() for part in ("k", "v", "beta"))
            recall = (state * k[:, :, None]).sum(-1)
            state = state + (beta[..., None] * (v - recall))[..., None] * k[:, :, None]
        else:
            state = state + seen["write"][:, t].double()
        state = 2 * state if t == at else state
    found = out.state.layers[layer]["ssm"].tensors()["recurrent"]
    error = far(found, state.to(found.dtype), extra=case.amplified(point))
    assert not torch.allclose(out.logits[:, at:], case.logits[:, at:], atol=1e-3), "the edit changes no logit"
    far(out.logits[:, :at], case.logits[:, :at], extra=case.extra, what="logits before the edit")
    _, part = case.kept("hook_logits", [(point, double)], ids=case.ids[:, : at + 1])
    _, rest = case.kept("hook_logits", ids=case.ids[:, at + 1 :], state=part.state)
    return max(error, far(rest.logits, out.logits[:, at + 1 :], extra=case.extra))


def gradients(case):
    """Of a sum of logits by every weight: those of the untouched model."""
    weights = torch.randn(case.logits.shape, generator=torch.Generator().manual_seed(2))

    def of(forward, model):
        model.zero_grad()
        (forward(case.ids) * weights).sum().backward()
        found = {name: 0 * w if w.grad is None else w.grad.clone() for name, w in model.named_parameters()}
        model.zero_grad()
        return {name: value.detach() for name, value in found.items()}

    ours = of(lambda ids: case.lens.network(ids).logits, case.model)
    theirs, other = (of(lambda ids, m=m: m(ids, use_cache=False).logits, m) for m in (case.model, case.other))
    assert any(bool(value.abs().max() > 0) for value in theirs.values())
    return max(
        far(ours[name], theirs[name], GRADIENT, 8 * float((other[name] - theirs[name]).abs().max()) + 1e-9, name)
        for name in theirs
    )


def hidden_attention(case):
    """The pattern is a plain loop's; where values have a point, Σ pattern · v is the readout, erasure included."""
    layer, half = case.recurrent("hook_pattern"), LENGTH // 2
    name = f"blocks.{layer}.ssm"
    pattern = case.run[f"{name}.hook_pattern"]
    error = far(pattern, case.truth[f"{name}.hook_pattern"], extra=case.amplified(f"{name}.hook_pattern"))
    if case.run.get(f"{name}.hook_v", pattern).ndim == 4 and f"{name}.hook_v" in case.run:  # heads, not channels
        first = (f"{name}.hook_v", lambda x, hook: torch.cat([x[:, :half], torch.zeros_like(x[:, half:])], dim=1))
        y = case.kept([f"{name}.hook_y"], [first])[0][f"{name}.hook_y"][:, half:]
        values = case.run[f"{name}.hook_v"][:, :half].float()
        read = torch.einsum("bspk,bksu->bpsu", pattern[:, :, half:, :half].float(), values)
        error = max(error, far(read, y.float(), extra=case.amplified(f"{name}.hook_y")))
    return error


def weights(case):
    """Maps of heads, of recurrent layers and of the vocabulary, applied by hand to a run's inputs, give its points."""
    maps, run, error = Weights.of_model(case.lens), case.run, 0.0

    def plus(x, bias):
        return x if bias is None else x + bias

    def read_by(block):
        return run.get(f"{block}.ln1.hook_normalized", run[f"{block}.hook_resid_pre"])

    for layer in case.lens.cfg.attention_layers:
        view, block = maps.attention(layer), f"blocks.{layer}"
        x = read_by(block)
        for point in "qkv":
            made = torch.einsum("bpd,hde->bphe", x, getattr(view, f"W_{point.upper()}"))
            made = plus(made, getattr(view, f"b_{point.upper()}"))
            if view.latent_scale is not None and point in "kv":
                made = as_latent(case.lens, layer, x, view, made, point)
            error = max(error, far(made, run[f"{block}.attn.hook_{point}"], LAYER))
        z = run.get(f"{block}.attn.hook_z_gated", run[f"{block}.attn.hook_z"])
        result = torch.einsum("bphe,hed->bphd", z, view.W_O)
        if f"{block}.ln1_post.hook_scale" in run:  # of a norm behind heads: its gain is in the maps
            result = result / run[f"{block}.ln1_post.hook_scale"][..., None]
        error = max(error, far(result, run[f"{block}.attn.hook_result"], LAYER))
    for layer in case.lens.cfg.ssm_layers:
        parts, block = maps.recurrent(layer).parts, f"blocks.{layer}"
        x, seen = plus(read_by(block) @ parts.W_in, parts.b_in), run[f"{block}.ssm.{parts.source}"]
        if not parts.convolved:  # what the activation gives is all there is to see, by heads
            x, seen = parts.activation(x), seen.flatten(2)
        error = max(error, far(x, seen[..., parts.written], LAYER))
        written = run[f"{block}.ssm.hook_y"].flatten(2) * run[f"{block}.ssm.hook_gate"]
        if parts.norm is not None:
            written = written * parts.norm({point: run[f"{block}.ssm.{point}"] for point in parts.norm_points})
        out = plus(written.float() @ parts.W_out, parts.b_out)
        error = max(error, far(out, run[f"{block}.hook_ssm_out"].float(), LAYER))
    unembedding = torch.cat([block.U for block in maps.vocabulary()])
    found = case.lens.network.capped(run["ln_final.hook_normalized"].float() @ unembedding.T)
    error = max(error, far(found, case.logits.float(), extra=case.extra))
    return max(error, far(maps.embed(case.ids[0]), run["hook_embed"][0].float(), LAYER))


def head_circuits(case):
    """Eigenvalues add up to traces over the vocabulary; the profile is a run's pattern among equal tokens."""
    maps, layer = Weights.of_model(case.lens), case.attending
    view, (block,) = maps.attention(layer), maps.vocabulary()
    E, U, shared, seen = block.E.double(), block.U.double(), products(maps), view.compared
    W_K, W_V = (w.repeat_interleave(view.n_shared, 0).double() for w in (seen.W_K, view.W_V))
    error = 0.0
    for found, ends, left, right in (
        (ov_eigenvalues(view, shared.UE), U, W_V, view.W_O_at_rest.double()),
        (qk_eigenvalues(view, shared.EE), E, seen.W_Q.double(), W_K.transpose(1, 2)),
    ):
        made = torch.einsum("td,hde,hef->htf", E, left, right)
        traces = torch.einsum("htf,tf->h", made, ends - ends.mean(0))
        error = max(error, far(found.sum(-1).real, traces.float(), extra=1e-5 * float(made.abs().max())))
    n = min(8, view.window or 8)
    content = torch.randn(case.lens.cfg.d_model, generator=torch.Generator().manual_seed(4))
    before = f"blocks.{layer}.ln1.hook_normalized"
    before = before if before in case.run else f"blocks.{layer}.hook_resid_pre"
    same = (before, lambda x, hook: content.expand_as(x))
    name = f"blocks.{layer}.attn.hook_pattern"
    pattern = case.kept([name], [same], ids=tokens(1, n))[0][name][0, :, -1].flip(-1)
    error = max(error, far(profile(view, content, n), pattern.float()))
    circuits(case.lens, case.ids, sample_size=20)
    return error


def patching(case):
    """The stream of one prompt put into another, at a position of each layer: the untouched model with that input."""
    clean, corrupt = tokens(1, LENGTH, 1), tokens(1, LENGTH, 2)
    metric, stem = LogitDifference(3, 7), PATHS[case.model.config.model_type][0]
    places = [(layer, (3 * layer + 4) % LENGTH) for layer in range(case.lens.cfg.n_layers)]
    targets = [Target(f"blocks.{layer}.hook_resid_pre", {"p": place}) for layer, place in places]
    found = activation_patch(case.lens, clean, corrupt, metric, targets=targets).raw
    given, expected = {}, []

    def keep(layer):
        return lambda module, args, kwargs: given.update({layer: (args or tuple(kwargs.values()))[0].clone()})

    def put(layer, place):
        def change(module, args, kwargs):
            x = (args or tuple(kwargs.values()))[0].clone()
            x[:, place] = given[layer][:, place]
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

        return change

    layers = case.model.get_submodule(stem)
    with contextlib.ExitStack() as hooks:
        for layer, _ in places:
            handle = layers[layer].register_forward_pre_hook(keep(layer), with_kwargs=True)
            hooks.callback(handle.remove)
        case.untouched(clean)
    for layer, place in places:
        handle = layers[layer].register_forward_pre_hook(put(layer, place), with_kwargs=True)
        expected.append(metric(case.untouched(corrupt)).item())
        handle.remove()
    scale = float(case.logits.abs().max())
    return far(found.float(), torch.tensor(expected), extra=case.extra + 1e-5 * scale)


def crossover(case):
    """Keys and values of one prompt beside recurrent memory of another: the library's own cache, exchanged by hand."""
    _ = case.attending
    case.recurrent("hook_state")
    case = Case(case.family, **ROWS[case.family].unclamped)
    a, b = tokens(1, LENGTH, 1), tokens(1, LENGTH, 2)
    names = ("kv B, conv A, recurrent A", "kv B, recurrent A")  # with convolutions and without
    mix = next(mix for mix in mixes(case.lens.cfg) if mix.name in names)
    with torch.no_grad():
        mixed = mix.of(case.lens.prefill(a).state, case.lens.prefill(b).state)
        ours = case.lens.extend(mixed, [[9]]).logits
        caches = []
        for ids in (b, a):  # A last: what modules themselves remember is A's
            caches.append(new_cache(case.model))
            case.model(ids, past_key_values=caches[-1], use_cache=True)
        for layer in case.lens.cfg.attention_layers:
            for name in ("keys", "values"):
                setattr(caches[1].layers[layer], name, getattr(caches[0].layers[layer], name))
        at = torch.tensor([[LENGTH]])
        theirs = case.model(torch.tensor([[9]]), past_key_values=caches[1], position_ids=at, use_cache=True).logits
    return far(ours, theirs, extra=case.extra)


def scan_kernels(case):
    """Through a stand-in for a kernel, a plain loop behind the kernels' own interface: the same logits."""
    _, used = case.recurrent("hook_state"), []

    def plain(decay, write, initial, reverse):
        states, order = [], range(decay.shape[1])
        for t in reversed(order) if reverse else order:
            initial = decay[:, t] * initial + write[:, t]
            states.append(initial)
        return torch.stack(states[::-1] if reverse else states, 1)

    def linear(*terms):
        used.append("linear")
        return plain(*terms)

    def selective(dt, A, B, C, x, initial):
        used.append("selective")
        states = plain(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None], initial, False)
        return (states * C[:, :, None]).sum(-1), states[:, -1]

    stand_in = Kernel("stand-in", (), linear=linear, selective=selective)

    def chosen(operation, *tensors, steps, **others):
        return stand_in if operation in ("linear", "selective") and steps > 1 else None

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name, module in list(sys.modules.items()):
            if name.startswith("hybridlens.recurrences.") and hasattr(module, "kernel_for"):
                patch.setattr(module, "kernel_for", chosen)
        found = case.lens(case.ids)
    kinds = sorted({recurrence.kind for recurrence in case.lens.cfg.recurrences})
    assert used, f"no kernel is called for {', '.join(kinds)}; on a GPU the plain code runs"
    assert len(set(used)) == 1, f"two scans, {used}, and one expected"
    return Verdict("works", far(found, case.logits, extra=case.extra), by=used[0])


CHECKS = {
    "logits": logits, "chunks": chunks, "ragged": ragged, "decode points": decode_points, "state edits": state_edits,
    "gradients": gradients, "hidden attention": hidden_attention, "weights": weights, "circuits": head_circuits,
    "patching": patching, "crossover": crossover, "kernels": scan_kernels,
}  # fmt: skip
assert tuple(CHECKS) == COLUMNS


def checked(family):
    """A family's row: every check, on its small model. What fails is said, and not hidden."""
    case, found = Case(family), {}
    for column, check in CHECKS.items():
        try:
            error = check(case)
            found[column] = error if isinstance(error, Verdict) else Verdict("works", error)
        except NotThere as lacking:
            found[column] = Verdict("none", None, str(lacking))
        except Exception as problem:  # a column that cannot be computed fails, whatever is raised
            said = " ".join(f"{problem}".split()) or type(problem).__name__
            found[column] = Verdict("fails", None, said[:REASON])
    architecture = next(row.architecture for row in FAMILIES if row.name == family)
    return FamilyRow(family, architecture, found)


def table(families):
    """The rows of some families, with the version of transformers that they were checked against."""
    return Supported(transformers.__version__, tuple(checked(family) for family in families))
