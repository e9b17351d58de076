"""Every analysis on a model whose layers lie on two devices, and with its weights on the disk: the same numbers.

The devices are pretended (tests/pretended.py): tensors of two of them refuse to meet, as they would on GPUs. Layers lie
on them in turn; embedding, last norm and unembedding are each where the part before is not, as far as the model allows.
On them recurrences go in other pieces than on the CPU, so that numbers are equal up to rounding; from the disk, to the
bit. That an analysis says anything at all its own tests see to.
"""

import functools
import logging

import every_analysis as every
import pytest
import torch
from bounds import FORWARD, close
from every_analysis import EVERYWHERE, IDS, MORE, OF_HEADS, THEIRS, numbers
from models import make
from pretended import pretended
from test_spread import spread

import hybridlens as hl
from hybridlens.errors import InputError

ONE, OTHER = "mtia:0", "mtia:1"
CASES = [("jamba", run) for run in (*EVERYWHERE, *OF_HEADS)]
CASES += [("recurrentgemma", run) for run in (every.followed, every.weighed, every.rewritten)]
CASES += [("mamba2", run) for run in (every.remade, every.cached)]
CASES += [("zamba2", every.gone_on)]
"""All of it on one model; on others what they have otherwise: tied ends, windows, matrix states, a shared block."""


@pytest.fixture(autouse=True)
def no_gradients():
    logging.disable(logging.WARNING)  # accelerate says of each model that weights were moved
    with torch.no_grad():
        yield
    logging.disable(logging.NOTSET)


def apart(model):
    """A device_map that moves the stream at every step of its way."""
    lens = hl.HybridLens(model)
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (names[id(end)] for end in (model.get_input_embeddings(), model.get_output_embeddings()))
    found = spread(model, [ONE, OTHER]) | {embedding: OTHER}
    last = found[names[id(lens.network.homes[-1])]]
    found[names[id(lens.network.ln_final.norm.module)]] = ONE if last == OTHER else OTHER
    return found | {head: OTHER if lens.network.tied else last}


@functools.cache
def on_one(family):
    """A model where nothing was moved."""
    return hl.HybridLens(make(family))


@functools.cache
def on_two(family):
    """The same on both devices; to be called where these are."""
    from accelerate import dispatch_model

    model = make(family)
    return hl.HybridLens(dispatch_model(model, apart(model), force_hooks=True))


@functools.cache
def right(family, run):
    """What an analysis says of the model on the CPU."""
    return dict(numbers(run(on_one(family))))


@pytest.mark.parametrize(("family", "run"), CASES, ids=[f"{family}-{run.__name__}" for family, run in CASES])
def test_no_tensors_of_two_devices_meet_in_an_analysis(family, run):
    """Values put in at the last norm stood on the last layer's device; states of all layers could not be stacked."""
    with pretended():
        found = dict(numbers(run(on_two(family))))
    expected = right(family, run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            close(found[name], value, 4 * FORWARD, dtype=torch.float32, equal_nan=True, what=name)
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("run", [every.followed, every.cached], ids=lambda run: run.__name__)
def test_from_the_disk_an_analysis_says_the_same_to_the_bit(run, tmp_path):
    """What reads weights beside a pass has to fetch them; the others run the model, as tests/test_spread.py does."""
    from accelerate import dispatch_model

    model = make("jamba")
    lens = hl.HybridLens(dispatch_model(model, spread(model, ["disk"]), offload_dir=tmp_path))
    expected = right("jamba", run)
    for name, value in numbers(run(lens)):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert value == expected[name], name


def test_states_go_back_to_where_layers_compute(tmp_path):
    """One that was saved, or parked on the CPU, is refused, and could be moved to one device alone."""
    said = every.after(on_one("jamba"), on_one("jamba").prefill([IDS, THEIRS]).state)[0]
    with pretended():
        lens = on_two("jamba")
        state = lens.prefill([IDS, THEIRS]).state
        state.save(tmp_path / "state")
        loaded = hl.HybridState.load(tmp_path / "state")
        with pytest.raises(
            InputError, match=r"the state is torch.float32 on cpu.*move the state with state.to\(lens\)"
        ):
            lens.extend(loaded, MORE)
        with pytest.raises(InputError, match=r"cat: states on cpu, others on mtia:0 and mtia:1 were given"):
            hl.HybridState.cat([loaded, state])
        back = loaded.to(lens)
        assert lens.layer_devices == tuple(torch.device((ONE, OTHER)[i % 2]) for i in range(lens.cfg.n_layers))
        assert {name: t.device for name, t in back.tensors().items()} == {
            name: t.device for name, t in state.tensors().items()
        }
        close(lens.extend(hl.HybridState.cat([back, state]), MORE * 2).logits.cpu(), said.repeat(2, 1, 1), FORWARD)
    with pytest.raises(InputError, match=r"the state is of 4 layers, but the lens has 2"):
        hl.HybridState.load(tmp_path / "state").to(on_one("mamba2"))
