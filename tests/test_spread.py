"""Models that accelerate moved to the disk, or spread over devices: the same numbers, and clear lines where it cannot.

The devices are pretended (tests/pretended.py): tensors of two of them refuse to meet, as they would on GPUs. On them
recurrences go in other pieces than on the CPU, so that numbers are equal up to rounding; from the disk, to the bit.
"""

import functools
import logging

import pytest
import torch
from bounds import FORWARD, near
from models import make, tokens
from pretended import pretended

import hybridlens as hl
from hybridlens.devices import check_places
from hybridlens.errors import HybridLensError, OffloadedWarning

DIFFERING = ("recurrentgemma", "jamba", "mamba2", "qwen3", "kimi_linear", "zamba2")
"""Families whose layers have nothing in common: scans, experts, matrix states, rotary embeddings of the model's own and
of a layer's, latents, a shared block; the others are put together from these parts."""

IDS = tokens(2, 4)


@pytest.fixture(autouse=True)
def no_gradients():
    logging.disable(logging.WARNING)  # accelerate says of each model that weights were moved
    with torch.no_grad():
        yield
    logging.disable(logging.NOTSET)


def spread(model, places):
    """A device_map: layers in turn on some places, what is outside of them on the last, but tied ends on one."""
    lens = hl.HybridLens(model)
    names = {id(module): name for name, module in model.named_modules()}
    layers = [names[id(home)] for home in lens.network.homes]
    found = {name: places[i % len(places)] for i, name in enumerate(layers)}

    def rest(module, above):
        for name, child in module.named_children():
            full = f"{above}{name}"
            if any(layer.startswith(f"{full}.") for layer in layers):
                rest(child, f"{full}.")
            elif full not in found:
                found[full] = places[-1 if model.config.tie_word_embeddings else len(found) % len(places)]

    rest(model, "")
    return found


def weights_of(lens):
    """Weights under every name that hands them out."""
    found = dict(lens.tl_parameters())
    for layer, block in enumerate(lens.blocks):
        if "ssm" in block.mixers:
            parts = lens.weights().recurrent(layer).parts._asdict()
            found |= {f"{layer}.{name}": value for name, value in parts.items() if isinstance(value, torch.Tensor)}
        for name in ("ln1", "ln2"):
            if hasattr(block, name):
                found[f"{layer}.{name}"] = getattr(block, name).w
    return found | {"ln_final": lens.ln_final.w, "E": lens.embed(IDS), "U": lens.unembed(torch.ones(lens.cfg.d_model))}


def run_of(lens):
    """Every activation, an edit's effect, logits and states of a prompt and what follows it, and an answer."""
    logits, cache = lens.run_with_cache(IDS, lambda name: True)
    found = {"logits": logits, **cache.cache_dict}
    read = lens.prefill(IDS, lengths=[4, 2])
    further = lens.extend(read.state, IDS[:, :2])
    found |= {"read": read.logits[0], "further": further.logits}
    for layer, held in enumerate(further.state.layers):
        for mixer, memory in held.items():
            found |= {f"{layer}.{mixer}.{name}": value for name, value in memory.tensors().items()}
    ends = ("hook_result", "hook_write", "hook_router_logits")
    halved = [(name, lambda x, hook: x / 2) for name in lens.hook_points if name.endswith(ends)]
    return found | {
        "edited": lens.run_with_hooks(IDS, halved),
        "said": lens.generate(IDS, 2, stop_at_eos=False).tokens,
        "lens": cache.logit_lens().values,
    }


@functools.cache
def plain(family):
    """What the untouched model gives, its weights, and their fingerprint."""
    with torch.no_grad():
        lens = hl.HybridLens(make(family))
        return run_of(lens), weights_of(lens), lens.prefill(IDS).state.weights, lens.n_parameters


@pytest.mark.parametrize("family", DIFFERING)
def test_from_the_disk_every_number_is_the_same_to_the_bit(family, tmp_path):
    """Runs, edits, states, answers and weights; the fingerprint tells other weights of one shape apart."""
    from accelerate import dispatch_model

    run, weights, fingerprint, counted = plain(family)
    model = make(family)
    lens = hl.HybridLens(dispatch_model(model, spread(model, ["disk"]), offload_dir=tmp_path))
    assert all(weight.is_meta for weight in model.parameters())
    found, read = run_of(lens), weights_of(lens)
    assert [name for name, value in run.items() if not torch.equal(value, found[name])] == []
    assert [name for name, value in weights.items() if not torch.equal(value, read[name])] == []
    assert lens.prefill(IDS).state.weights == fingerprint
    assert lens.n_parameters == counted
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize("family", DIFFERING)
def test_no_tensors_of_two_devices_meet(family):
    """Layers in turn on two devices, norm and unembedding apart: cosines of positions were on the wrong one."""
    from accelerate import dispatch_model

    with pretended():
        model = make(family)
        lens = hl.HybridLens(dispatch_model(model, spread(model, ["mtia:0", "mtia:1"]), force_hooks=True))
        found, read = run_of(lens), weights_of(lens)
        places = {str(value.device) for name, value in found.items() if name.startswith("blocks")}
    assert places == {"mtia:0", "mtia:1"}
    for name, value in plain(family)[0].items():
        near(found[name].cpu(), value, 4 * FORWARD)
    assert all(torch.equal(value, read[name]) for name, value in plain(family)[1].items() if name != "U")


def test_states_of_other_weights_are_refused_from_the_disk_too(tmp_path):
    """Of weights that were away only names and shapes counted, so that any state of the architecture was taken."""
    from accelerate import dispatch_model

    state = hl.HybridLens(make("jamba", seed=1)).prefill(IDS).state
    model = make("jamba")
    lens = hl.HybridLens(dispatch_model(model, spread(model, ["disk"]), offload_dir=tmp_path))
    with pytest.raises(HybridLensError, match="made by other weights than the model has now"):
        lens.extend(state, IDS[:, :1])


def test_maps_that_cannot_run_are_refused():
    """Part of a layer elsewhere, and tied weights on two devices: PyTorch's own errors come in the middle of a run."""
    from accelerate import dispatch_model

    with pretended():
        model = make("llama")
        places = spread(model, ["mtia:0"])
        whole = places.pop("model.layers.1")
        parts = {f"model.layers.1.{name}": whole for name, _ in model.model.layers[1].named_children()}
        dispatch_model(model, places | parts | {"model.layers.1.mlp": "mtia:1"}, force_hooks=True)
        with pytest.raises(HybridLensError, match=r"model\.layers\.1 is spread over mtia:0 and mtia:1.*whole layers"):
            hl.HybridLens(model)
        tied = make("recurrentgemma")
        places = spread(tied, ["mtia:0"]) | {"lm_head": "mtia:1"}
        dispatch_model(tied, places, force_hooks=True)
        with pytest.raises(HybridLensError, match=r"are on mtia:., but it computes on mtia:.*put both on one device"):
            hl.HybridLens(tied)
        check_places(make("llama"), [])


def test_what_load_moves_out_is_said_and_what_it_cannot_is_one_line(tmp_path):
    """Experts are stored one by one, and moved out together: into a folder of their own."""
    folder, little = tmp_path / "model", {"cpu": "20kB"}
    make("jamba").save_pretrained(folder)
    right = hl.load(folder)(IDS)
    with pytest.raises(HybridLensError, match=r"does not fit into the memory.*give offload_folder="):
        hl.load(folder, device_map="auto", max_memory=little)
    with pytest.raises(HybridLensError, match=r"offload_folder .*config\.json' is a file, expected a folder"):
        hl.load(folder, device_map="auto", max_memory=little, offload_folder=folder / "config.json")
    with pytest.raises(HybridLensError, match="max_memory = '1GB' given, expected the most of each place"):
        hl.load(folder, device_map="auto", max_memory="1GB")
    with pytest.raises(HybridLensError, match=r"max_memory\['cpu'\] = None given, expected bytes, or text"):
        hl.load(folder, device_map="auto", max_memory={"cpu": None})
    with pytest.raises(HybridLensError, match="max_memory's GPU 'cuda:77' cannot be used here"):
        hl.load(folder, device_map="auto", max_memory={77: "1GB"})
    with pytest.warns(OffloadedWarning, match=r"opened with .*B on the disk, of .*B in all, which each pass brings in"):
        lens = hl.load(folder, device_map="auto", max_memory=little, offload_folder=tmp_path / "away")
    near(lens(IDS), right, FORWARD)  # a mapped file begins elsewhere in memory, and sums go another way
    assert list((tmp_path / "away").iterdir())
    assert little == {"cpu": "20kB"}, "the caller's own table was written to"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    """What the library that writes safetensors says of it, where transformers moves weights out."""
    folder = tmp_path / "model"
    make("jamba").save_pretrained(folder)
    loader = type(hl.HybridLens(make("jamba")).hf_model)

    real = loader.from_pretrained

    def full(*args, **options):
        if "offload_folder" not in options:  # what is opened before, without weights
            return real(*args, **options)
        raise OSError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(loader, "from_pretrained", full)
    with pytest.raises(HybridLensError, match=r"does not fit on the disk of offload_folder .*No space left") as caught:
        hl.load(folder, device_map="auto", max_memory={"cpu": "20kB"}, offload_folder=tmp_path / "away")
    assert "\n" not in str(caught.value)
