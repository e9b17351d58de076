"""Nothing in a forward pass or a decode step waits for the device: every tensor there refuses to be read."""

import pytest
import torch
from models import EVERY_FAMILY, FAMILIES, make, tokens
from unread import Away, OnDevice, Waited, read, send, sent

from hybridlens import HybridLens
from hybridlens import decoding_batch as batches
from hybridlens.decoding import Decoding, begin, decode
from hybridlens.fixed_steps import FixedSteps
from hybridlens.network import HookedNetwork
from hybridlens.tokens import TokenBatch

LENGTHS = torch.tensor([12, 5, 9])
"""On the host, where they are known."""


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0])],
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.ones(2).to(x.device),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.arange(3, device=x.device).max().item(),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_what_would_wait_is_refused(waiting) -> None:
    """Otherwise the tests below could not fail."""
    with Away(), pytest.raises(Waited):
        waiting(sent(torch.ones(4)))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_passes_wait_for_nothing(family: str) -> None:
    """With padding and without, beyond windows, for rows that stop reading, and for several tokens after others.

    Weights, tokens and all that is made of them refuse to be read; lengths are on the host. A step of fixed shapes
    takes nothing from there at all.
    """
    network, ids = HybridLens(send(make(family))).network, sent(tokens(3, 12))
    network.following.check()
    with torch.no_grad(), Away():
        plain, padded = network(ids), network(ids, LENGTHS, None, True)
        network(ids[:, :1], None, plain.state)
        state = network(ids[:, :1], torch.tensor([1, 0, 1]), padded.state, True).state
        network(ids[:, :3], torch.tensor([3, 0, 2]), state, True)
        steps = FixedSteps(network, padded.state, 2, masked=True)
        steps.read(ids[:, 0], [True, False, True])
    with Away(alone=True):
        steps._step()
    assert isinstance(plain.logits, OnDevice)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_the_host_are_sent_without_waiting(family: str) -> None:
    """A prompt and what follows it, through the lens, as ids that are on the host."""
    lens, ids = HybridLens(send(make(family, 3))), tokens(2, 12)
    lens.network.following.check()
    with torch.no_grad(), Away():
        state = lens.network(sent(ids)).state
        assert isinstance(lens.extend(state, ids[:, :3]).logits, OnDevice)
        assert isinstance(lens.batch([[3, 4, 5], [6]]).lengths, OnDevice)


class Copied:
    """Stands for `devices.Coming`: a copy is on its way, and only `here` waits for it."""

    waited = 0

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def here(self) -> torch.Tensor:
        Copied.waited += 1
        return read(self.value)


@pytest.fixture
def counted(monkeypatch) -> type[Copied]:
    Copied.waited = 0
    monkeypatch.setattr(batches, "Coming", Copied)
    return Copied


def a_network(family: str) -> HookedNetwork:
    network = HybridLens(send(make(family, 3))).network
    network.following.check()
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_that_nothing_ends_looks_at_no_token_before_the_last_is_made(family: str, counted) -> None:
    """Copies are on their way from every step; the first is looked at when all steps have been run."""
    network = a_network(family)
    for lengths in (None, LENGTHS):
        batch, seen = TokenBatch(sent(tokens(3, 12)), lengths), list[int]()
        how = Decoding(5, said=lambda _, seen=seen: seen.append(counted.waited))
        with Away():
            made = decode(network, begin(network, batch, (), "last_prompt_token"), how)
        assert seen == [0] * 5
        assert counted.waited == 5
        assert [len(row) for row in made.tokens] == [5, 5, 5]
        counted.waited = 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ended", ["stay", "leave"])
def test_decoding_that_tokens_end_waits_for_one_copy_a_step_and_nothing_else(family: str, ended, counted) -> None:
    """Rows end one after the other; a step ahead, each copy is looked at once another step has been started."""
    network, batch = a_network(family), TokenBatch(sent(tokens(3, 12)), LENGTHS)
    ends, behind = tuple(range(0, 53, 5)), list[int]()
    with Away():
        start = begin(network, batch, (), "last_prompt_token")
        how = Decoding(8, ends, ended=ended, ahead=1, said=lambda _: behind.append(counted.waited))
        made = decode(network, start, how)
    assert counted.waited == max(map(len, made.tokens))
    assert behind[:2] == [0, 0]
