"""Path patching: equal to a plain loop for random paths, and, all writers together, to the source's own input.

The reference does it the long way (Wang et al. 2022, appendix B), one path at a time with whole runs of the model: a
run in which the writer's output is the source's and every other mixer's and MLP's output is held at the base run's,
from which the reader's input is read; and a run in which that is put in. It adds no differences, projects no heads,
skips no layers or positions and has batches of one; it shares no code with what it checks.
"""

import random
from functools import cache
from itertools import pairwise

import pytest
import torch
from bounds import FORWARD, LAYER, apart, bound, close
from models import FAMILIES, MATRIX, PATCHED, ROWS, WITH_HEADS, make_calm, tokens
from patching_loops import followed, whole_mixers

import hybridlens as hl
from analyses.patching.metrics import KullbackLeibler, LogitDifference
from analyses.patching.paths import path_patch
from analyses.patching.results import PatchResult
from analyses.patching.running import activation_patch
from analyses.patching.targets import Target
from analyses.patching.writers import Reader, Writer, reaches, writers_of
from hybridlens.errors import InputError, UnknownNameError

LENGTH = 19  # more than twice the window of the small RecurrentGemma
METRIC = LogitDifference(3, 7)
WITH_MLPS = [(family, mlps) for mlps in (False, True) for family in PATCHED if not (mlps and ROWS[family].shared)]
"""Families, and whether paths run through MLPs: through those that write to the stream."""


@cache
def small(family, dtype=torch.float32):
    changes = {"num_key_value_heads": 2, "attention_bias": True} if family == "recurrentgemma" else {}
    return hl.HybridLens(make_calm(family, 3, **changes).to(dtype))


def prompts(shared=5, length=LENGTH):
    """Two random prompts with a common beginning."""
    clean, corrupt = tokens(1, length, 1), tokens(1, length, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return clean, corrupt


def point_of(lens, reader):
    if reader.kind == "logits":
        return "ln_final.hook_normalized"
    second = lens.cfg.layers[reader.layer].type != "mlp"
    norms = {"mixer": "ln1.hook_normalized", "mlp": f"ln{2 if second else 1}.hook_normalized"}
    name = f"blocks.{reader.layer}." + norms.get(reader.kind, f"attn.hook_{reader.kind}")
    return name if name in lens.hook_dict else f"blocks.{reader.layer}.hook_{reader.kind}_in"  # without a norm


def put(name, values, head=None, places=slice(None), heads=None):
    """A hook that puts in some positions of values [p …], whole or of one head, of `heads` side by side its share."""

    def fn(x, hook):
        x = x.clone()
        if head is None:
            x[0, places] = values[places]
        elif heads is None:
            x[0, places, head] = values[places, head]
        else:
            share = slice(head * x.shape[-1] // heads, (head + 1) * x.shape[-1] // heads)
            x[0, places, share] = values[places, share]
        return x

    return name, fn


def heads_point(lens, writer):
    """Where a head's values stand before its layer's output projection, and how many stand side by side there.

    Behind a norm, where the write itself stands: the norm's scale is that of each run.
    """
    if f"blocks.{writer.layer}.ln1_post.hook_scale" in lens.hook_dict:
        return f"blocks.{writer.layer}.attn.hook_result", None
    if writer.kind == "ssm_head":
        return f"blocks.{writer.layer}.ssm.hook_normed", lens.cfg.recurrence(writer.layer).n_heads
    gated = f"blocks.{writer.layer}.attn.hook_z_gated"
    return (gated if gated in lens.hook_dict else f"blocks.{writer.layer}.attn.hook_z"), None


def loop(lens, base, source, paths, metric=METRIC, positions=None, through_mlps=False):
    """The metric when each path by itself is exchanged."""
    wanted = ("hook_embed", "hook_attn_out", "hook_ssm_out", "hook_mlp_out", "hook_z", "hook_z_gated", "hook_normed")
    wanted += ("hook_result",)
    with torch.no_grad():
        held, other = (lens.run_with_cache(run, lambda name: name.endswith(wanted))[1] for run in (base, source))
    values = [plain(lens, base, held, other, *path, metric, positions, through_mlps) for path in paths]
    return torch.tensor(values, dtype=torch.float64)


def plain(lens, base, held, other, group, reader, metric, positions, through_mlps):
    """The metric when one path is exchanged, by two whole runs."""
    places = slice(None) if positions is None else list(positions)
    with torch.no_grad():
        hooks = []
        for layer in range(lens.cfg.n_layers):  # everything held as in the base run …
            frozen = [f"blocks.{layer}.hook_{part}_out" for part in ("attn", "ssm")]
            for writer in group:
                if writer.layer == layer and writer.kind in ("head", "ssm_head"):
                    part = "attn" if writer.kind == "head" else "ssm"
                    frozen[("attn", "ssm").index(part)] = heads_point(lens, writer)[0]
            frozen += [] if through_mlps else [f"blocks.{layer}.hook_mlp_out"]
            hooks += [put(name, held[name][0]) for name in frozen if name in lens.hook_dict]
        for writer in group:  # … but the writers
            if writer.kind == "embed":
                hooks.append(put("hook_embed", other["hook_embed"][0], None, places))
            elif writer.index is not None:
                name, heads = heads_point(lens, writer)
                hooks.append(put(name, other[name][0], writer.index, places, heads))
            else:
                name = f"blocks.{writer.layer}.hook_{writer.kind}_out"
                hooks.append(put(name, other[name][0], None, places))
        kept, name = {}, point_of(lens, reader)
        hooks.append((name, lambda x, hook: kept.__setitem__("x", x[0].clone())))
        lens.run_with_hooks(base, hooks)
        return metric(lens.run_with_hooks(base, [put(name, kept["x"], reader.head, places)]))[0].item()


def random_paths(lens, n, seed):
    """Writers, some of them several together, and readers behind all of these."""
    rng = random.Random(seed)
    writers, readers = writers_of(lens), list(dict.fromkeys([*followed(lens), *whole_mixers(lens)]))
    paths = []
    while len(paths) < n:
        group = tuple(rng.sample(writers, rng.choice([1, 1, 1, 2, 3])))
        reader = rng.choice(readers)
        if all(reaches(lens, writer, reader) for writer in group) and (group, reader) not in paths:
            paths.append((group, reader))
    return paths


def patched(lens, clean, corrupt, paths, metric=METRIC, **options):
    """The metric of each path; writers and readers are given all at once."""
    groups = list(dict.fromkeys(group for group, _ in paths))
    readers = list(dict.fromkeys(reader for _, reader in paths))
    found = path_patch(lens, clean, corrupt, metric, groups, readers, absent="untouched", **options)
    assert found.raw.shape == (len(groups), len(readers))
    return found, torch.stack([found.raw[groups.index(group), readers.index(reader)] for group, reader in paths])


@pytest.mark.parametrize(("family", "through_mlps"), WITH_MLPS)
def test_random_paths_equal_the_plain_loop(family, through_mlps):
    """Any writers and readers, any batch size, from position 0 or behind the shared beginning; beyond the window."""
    lens, (clean, corrupt), direction = small(family), prompts(), "noise" if through_mlps else "denoise"
    paths = random_paths(lens, 12, seed=len(direction) + through_mlps)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    expected = loop(lens, base, source, paths, through_mlps=through_mlps)
    assert expected.std() > 0.02
    for batch_size, skip in ((1, False), (7, True), (64, True)):
        found, ours = patched(
            lens, clean, corrupt, paths, direction=direction, through_mlps=through_mlps, batch_size=batch_size,
            skip_positions=skip,
        )  # fmt: skip
        close(ours, expected, FORWARD, dtype=torch.float32)
        with torch.no_grad():
            close(found.clean, METRIC(lens(clean)).item(), FORWARD, dtype=torch.float32)
            close(found.corrupt, METRIC(lens(corrupt)).item(), FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_each_kind_of_writer_and_reader_is_heard(family):
    """One path of each kind, against the plain loop; every one of them changes the metric by far more than rounding."""
    lens, (clean, corrupt) = small(family), prompts()
    first, last = Writer("embed"), {reader.kind: reader for reader in followed(lens)}
    ends = [reader for reader in followed(lens) if reader.kind == "mixer"]
    readers = list(dict.fromkeys([*last.values(), *ends[:1], *whole_mixers(lens), *ends[-1:]]))
    paths = [((first,), reader) for reader in readers]
    paths += [((writer,), Reader("logits")) for writer in writers_of(lens) if writer != first]
    expected = loop(lens, corrupt, clean, paths)
    found, ours = patched(lens, clean, corrupt, paths)
    close(ours, expected, FORWARD, dtype=torch.float32)
    assert (ours - found.corrupt).abs().min() > 2 * bound(float(ours.abs().max()), FORWARD)
    assert ours.unique().numel() == len(ours)


@pytest.mark.parametrize(("family", "through_mlps"), WITH_MLPS)
def test_chosen_positions_only(family, through_mlps):
    """Outputs exchanged at some positions reach the reader there and nowhere else."""
    lens, (clean, corrupt) = small(family), prompts()
    paths = random_paths(lens, 6, seed=11)
    for positions in ([-1], [7, 16, 2]):
        expected = loop(lens, corrupt, clean, paths, METRIC, positions, through_mlps)
        _, ours = patched(lens, clean, corrupt, paths, positions=positions, through_mlps=through_mlps)
        close(ours, expected, FORWARD, dtype=torch.float32)


@pytest.mark.parametrize(("family", "through_mlps"), WITH_MLPS)
def test_all_writers_together_give_the_reader_its_input_in_the_source_run(family, through_mlps):
    """For every reader of the model: the same as activation patching of that input; for the logits, the other run."""
    lens, (clean, corrupt) = small(family), prompts()
    readers = list(dict.fromkeys([*followed(lens), *whole_mixers(lens)]))
    targets = []
    for reader in readers:
        where = {} if reader.head is None else {"h" if reader.kind in ("q", "gate") else "g": reader.head}
        targets.append(Target(point_of(lens, reader), where))
    expected = activation_patch(lens, clean, corrupt, METRIC, targets=targets).raw
    paths = [
        (tuple(writer for writer in writers_of(lens) if reaches(lens, writer, reader)), reader) for reader in readers
    ]
    found, ours = patched(lens, clean, corrupt, paths, through_mlps=through_mlps)
    close(ours, expected, FORWARD, dtype=torch.float32)
    logits = readers.index(Reader("logits"))
    close(ours[logits].item(), found.clean, FORWARD, dtype=torch.float32)
    assert (ours - found.corrupt).abs().min() > 2 * bound(float(ours.abs().max()), FORWARD)


@pytest.mark.parametrize("family", PATCHED)
def test_bfloat16_is_as_near_to_the_truth_as_the_plain_loop(family):
    """Both are compared with the same weights computed in float32."""
    lens, (clean, corrupt) = small(family, torch.bfloat16), prompts()
    changes = {"num_key_value_heads": 2, "attention_bias": True} if family == "recurrentgemma" else {}
    exact = hl.HybridLens(make_calm(family, 3, **changes).to(torch.bfloat16).to(torch.float32))
    paths = random_paths(lens, 10, seed=6)
    truth, plainly = (loop(which, corrupt, clean, paths) for which in (exact, lens))
    _, ours = patched(lens, clean, corrupt, paths, batch_size=8)
    error, plainly = ((values - truth).square().mean().sqrt() for values in (ours, plainly))
    assert error < 1.5 * plainly + 1e-3
    assert error < 0.5 * truth.std()


@pytest.mark.parametrize("family", WITH_HEADS)
def test_with_mlps_a_path_is_more_than_without(family):
    """Between the embedding and the logits lie MLPs; between a layer's mixer and its own MLP none."""
    lens, (clean, corrupt) = small(family), prompts()
    order = [writer for writer in writers_of(lens) if writer.kind != "embed"]
    last = max(own.layer for before, own in pairwise(order) if own.kind == "mlp" != before.kind)
    kind = [writer for writer in order if writer.kind != "mlp" and writer.layer <= last]
    kind = [writer for writer in kind if writer.layer == kind[-1].layer]
    direct, through = (
        path_patch(
            lens, clean, corrupt, METRIC, [Writer("embed"), kind], [Reader("mlp", last), Reader("logits")],
            through_mlps=mlps,
        )
        for mlps in (False, True)
    )  # fmt: skip
    assert apart(direct.raw[0, 1], through.raw[0, 1], dtype=torch.float32)
    close(direct.raw[1, 0], through.raw[1, 0].item(), FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_without_a_path_are_refused_or_left_untouched(family):
    lens, (clean, corrupt) = small(family), prompts()
    attention = lens.cfg.attention_layers[0]
    late = [
        (Writer("mlp", 1), Reader("mlp", 1)), (Writer("head", attention, 0), Reader("q", attention, 1)),
        (Writer("mlp", 3), Reader("mixer", 2)), (Writer("ssm", 3), Reader("v", attention, 0)),
    ]  # fmt: skip
    for writer, reader in late:
        line = f"there is no path from '{writer.words}' to '{reader.words}', which does not come after it"
        with pytest.raises(InputError, match=line):
            path_patch(lens, clean, corrupt, METRIC, [Writer("embed"), writer], [reader])
        found = path_patch(lens, clean, corrupt, METRIC, [Writer("embed"), writer], [reader], absent="untouched")
        assert found.raw[1, 0] == found.corrupt
        assert found.raw[0, 0] != found.corrupt
    with pytest.raises(InputError, match="no path from 'L1 MLP'"):
        path_patch(lens, clean, corrupt, METRIC, [[Writer("embed"), Writer("mlp", 1)]], [Reader("mlp", 1)])


@pytest.mark.parametrize("family", PATCHED)
def test_the_whole_model_at_once_in_few_passes(family, tmp_path):
    """Every writer by every reader: as many passes as rows need, and a saved result that names both ends."""
    lens, (clean, corrupt) = small(family), prompts()
    writers, readers, done = writers_of(lens), followed(lens), []
    found = path_patch(lens, clean, corrupt, METRIC, writers, readers, absent="untouched", progress=done.append)
    paths = sum(reaches(lens, writer, reader) for writer in writers for reader in readers)
    assert sum(done) == paths
    assert found.forwards == len(done) + 4  # both runs, and the untouched one whole and up to the first difference
    assert len(done) < paths / 8 + lens.cfg.n_layers
    assert [axis.name for axis in found.axes] == ["writer", "reader"]
    assert found.axes[0].labels == tuple(writer.words for writer in writers)
    assert found.axes[1].labels[-1] == "logits"
    again = PatchResult.load(found.save(tmp_path / "paths.safetensors"))
    assert torch.equal(again.raw, found.raw)
    assert again.axes == found.axes
    assert not any(point.has_hooks() for point in lens.hook_dict.values())


@pytest.mark.parametrize("family", MATRIX)
def test_parts_side_by_side_do_not_hear_each_other(family):
    """Both mixers of a layer read what stands before it; its MLP, if there is one, and later layers hear them."""
    lens, (clean, corrupt) = small(family), prompts()
    heads = [writer for writer in writers_of(lens) if writer.kind == "ssm_head" and writer.layer == 0]
    own = [reader for reader in followed(lens) if reader.layer == 0 and reader.kind != "mlp"]
    found = path_patch(lens, clean, corrupt, METRIC, heads, [*own, Reader("logits")], absent="untouched")
    assert (found.raw[:, :-1] == found.corrupt).all()
    assert (found.raw[:, -1] != found.corrupt).all()
    with pytest.raises(InputError, match="there is no path from 'L0 recurrent head 0' to 'L0"):
        path_patch(lens, clean, corrupt, METRIC, heads, own)
    mlps = not ROWS[family].shared
    without = path_patch(lens, clean, corrupt, METRIC, heads, [Reader("logits")], through_mlps=mlps)
    apart = (without.raw[:, 0] - found.raw[:, -1]).abs().max()
    assert apart > 1e-3 if mlps and lens.cfg.mlp_layers else apart < 1e-5


def test_what_a_model_without_attention_and_mlps_lacks_is_said_before_anything_runs():
    lens, (clean, corrupt) = small("mamba2"), prompts()
    for writer, reader, line in [
        (Writer("embed"), Reader("q", 1, 0), "reader 'L1 head 0 q': layer 1 has no heads; the model has none"),
        (Writer("embed"), Reader("mlp", 1), "reader 'L1 MLP in': layer 1 has no MLPs; the model has none"),
        (Writer("head", 0, 1), Reader("logits"), "writer 'L0 head 1': layer 0 has no heads; the model has none"),
        (Writer("mlp", 0), Reader("logits"), "writer 'L0 MLP': layer 0 has no MLPs; the model has none"),
        (Writer("ssm_head", 1, 4), Reader("logits"), r"the layer has recurrent heads 0\.\.3, but 4 was given"),
    ]:
        with pytest.raises(InputError, match=line):
            path_patch(lens, clean, corrupt, METRIC, [writer], [reader])


def test_little_memory_takes_rows_one_by_one():
    lens, (clean, corrupt) = small("jamba"), prompts()
    paths, done = random_paths(lens, 8, seed=3), []
    _, ours = patched(lens, clean, corrupt, paths)
    _, again = patched(lens, clean, corrupt, paths, memory=1, progress=done.append)
    close(again, ours, LAYER, dtype=torch.float32)
    assert set(done) == {1}


def test_metrics_of_all_positions():
    lens, (clean, corrupt) = small("jamba"), prompts()
    with torch.no_grad():
        metric = KullbackLeibler(lens(clean)[0, -6:])
    paths = random_paths(lens, 6, seed=2)
    _, ours = patched(lens, clean, corrupt, paths, metric)
    close(ours, loop(lens, corrupt, clean, paths, metric), FORWARD, dtype=torch.float32)


def test_where_both_prompts_are_alike_nothing_changes_and_nothing_runs():
    lens, (clean, corrupt) = small("jamba"), prompts(shared=9)
    done = []
    found = path_patch(
        lens, clean, corrupt, METRIC, [Writer("embed")], [Reader("logits")], positions=[0, 8], progress=done.append
    )
    assert found.raw.item() == found.corrupt
    assert done == []


def test_bad_input_is_one_line():
    lens, (clean, corrupt) = small("jamba"), prompts()
    embed, logits = [Writer("embed")], [Reader("logits")]

    def fails(error, line, writers=embed, readers=logits, prompt=clean, **options):
        with pytest.raises(error, match=line):
            path_patch(lens, prompt, corrupt, METRIC, writers, readers, **options)
        assert not any(point.has_hooks() for point in lens.hook_dict.values())

    fails(InputError, "writer 'L0 head 1': layer 0 has no heads; those are in layers 1", [Writer("head", 0, 1)])
    beginnings = "paths begin at embed, head, ssm, ssm_head, mlp"
    fails(InputError, f"writer 'L1 expert 0' given, but {beginnings}", [Writer("expert", 1, 0)])
    fails(InputError, "reader 'L2 head 0 q': layer 2 has no heads; those are in layers 1", readers=[Reader("q", 2, 0)])
    fails(InputError, r"the layer has key/value heads 0\.\.1, but 2 was given", readers=[Reader("k", 1, 2)])
    fails(InputError, r"the layer has query heads 0\.\.3, but 4 was given", readers=[Reader("q", 1, 4)])
    line = "reader 'L1 head 0 gate': the heads of layer 1 have no gate; they have q, k, v"
    fails(InputError, line, readers=[Reader("gate", 1, 0)])
    fails(InputError, "layer 4 has no MLPs; those are in layers 0, 1, 2, 3", readers=[Reader("mlp", 4)])
    fails(InputError, "0 writers and 1 readers given", [])
    fails(InputError, "no empty group", [[]])
    fails(InputError, "'embedding' was given twice", [*embed, embed])
    fails(InputError, r"position 19 given, but the prompt has 0\.\.18", positions=[19])
    fails(InputError, "batch_size = 0 given", batch_size=0)
    fails(InputError, "they part at position 6", prompt=clean[:, :-1])
    fails(UnknownNameError, "direction 'zero' does not exist", direction="zero")
    fails(UnknownNameError, "absent 'skip' does not exist; expected one of refuse, untouched", absent="skip")
    with pytest.raises(UnknownNameError, match="reader kind 'z' does not exist; expected one of q, k, v, gate, mixer"):
        Reader("z", 1, 0)
    with pytest.raises(InputError, match="reader 'q' was given head None, expected a number"):
        Reader("q", 1)
    with pytest.raises(InputError, match="reader 'logits' was given layer 3, expected none"):
        Reader("logits", 3)
    calls = []

    def breaks(logits):
        calls.append(logits)
        return logits[:, -1, 0] * (1.0 if len(calls) <= 2 else float("nan"))  # both ends are measured first

    with pytest.raises(InputError, match="returned nan for the path from embedding to logits"):
        path_patch(lens, clean, corrupt, breaks, embed, logits)
