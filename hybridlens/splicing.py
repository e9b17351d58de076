"""Sparse autoencoders in a model: the part of `HybridLens` that has features stand in for an activation.

Inside ``with lens.splice(name, sae) as spliced`` the activation x at a hook point is read by the autoencoder, and what
its features stand for goes on in its place, with what they leave out (the error) or without it:

    f = encode(x)        x̂ = decode(f)        e = x - x̂        goes on: decode(f') + e'

f' and e' are f and e after their hooks. They stand at hook points of their own, under SAELens' names, for as long as
the block lasts: ``spliced.features`` ("blocks.3.hook_resid_post.hook_sae_acts_post") and ``spliced.error``. So
they are read and edited like anything else: in caches, by edits of generation in prefill and in every decode step, by
backward hooks; in a trace ``lens.hook_dict[spliced.features].output`` is live behind the output of the point itself,
which is what the autoencoder reads, and before that of the error. A predicate on names is asked about them too.

With the error kept and nothing edited, what goes on is x, bit for bit: it is computed as x + (decode(f') - x̂) +
(e' - e). So are gradients: what is upstream of the point gets the model's own gradient, and the features that of
what they add, the error held (the indirect effect of Marks et al. 2024, "Sparse Feature Circuits").

What an autoencoder reads of a point is one row of numbers a token: all axes behind the position side by side, or,
where its width is that of the last axis alone, each head (channel, expert) by itself; an autoencoder that
does not state its width needs `d_in` where a point has several such axes.

How it fails: a point that has no numbers for each token, a width that does not fit, and a second autoencoder at one
point raise `InputError`. At ``ssm.hook_state`` a prompt's states are encoded as they come from the untouched
recurrence, and those of a decode step as they come from the state before, spliced or not: that is how edits of states
act. Autoencoders are computed in their own dtype and where they are.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.boundary import Positive, public
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import HookPoint, HookSpec, attached, check_name, reads_only
from hybridlens.network import HookedNetwork
from hybridlens.sae import SparseAutoencoder

ACTS, ERROR = "hook_sae_acts_post", "hook_sae_error"
"""SAELens' names of what stands at a spliced point."""


@runtime_checkable
class Autoencoder(Protocol):
    """Anything that makes features of activations, and activations of features; the last axis is theirs."""

    def encode(self, x: Float[Tensor, "*batch d_in"], /) -> Float[Tensor, "*batch feature"]:
        """Features of activations."""
        ...

    def decode(self, features: Float[Tensor, "*batch feature"], /) -> Float[Tensor, "*batch d_in"]:
        """What features stand for."""
        ...


@dataclass(frozen=True, eq=False)
class Splice:
    """An autoencoder at a hook point.

    Attributes:
        name: the hook point.
        sae: what stands there.
        keeps_error: whether what it leaves out goes on too.
        n_axes: how many of the point's last axes it reads side by side.
    """

    name: str
    sae: Autoencoder
    keeps_error: bool
    n_axes: int

    @property
    def features(self) -> str:
        """The hook point of its features, [b p feature], or [b p head feature] where it reads each head by itself."""
        return f"{self.name}.{ACTS}"

    @property
    def error(self) -> str:
        """The hook point of what it leaves out, in the shape of the activation; there only where the error is kept."""
        return f"{self.name}.{ERROR}"

    def points(self, spec: HookSpec) -> dict[str, HookPoint]:
        """The hook points of features and error, for the point of this spec."""
        sizes: dict[str, Any] = {
            axis: size for axis, size in zip(spec.axes, spec.sizes, strict=True) if size is not None
        }
        left = spec.axes[: len(spec.axes) - self.n_axes]
        apart = {axis: size for axis, size in sizes.items() if axis in left}
        made = {self.features: HookPoint(" ".join((*left, "a")), **apart)}
        if self.keeps_error:
            made[self.error] = HookPoint(" ".join(spec.axes), **sizes)
        for name, point in made.items():
            point.name = name
        return made

    def through(
        self, x: Float[Tensor, "batch pos *axes"], features: HookPoint, error: HookPoint | None
    ) -> Float[Tensor, "batch pos *axes"]:
        """What goes on in the place of an activation.

        Raises:
            HookFunctionError: the autoencoder cannot read so many numbers, or gives something of another shape.
        """
        read = x if _takes_heads(self.sae) else x.flatten(x.ndim - self.n_axes)
        read = read.to(**_home(self.sae, x))
        if error is None:
            return self._decoded(features(self._encoded(read)), read).view(x.shape).to(x)
        # A second pair of passes, so that the features' gradient is that of what they add, the error held.
        again = self._decoded(self._encoded(read), read)
        back = self._decoded(features(self._encoded(read)), read)
        left = (read - again).view(x.shape)
        return x + ((back - again).view(x.shape) + (error(left) - left)).to(x)

    def _encoded(self, read: Float[Tensor, "*rows"]) -> Float[Tensor, "*batch feature"]:
        try:
            return self.sae.encode(read)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise HookFunctionError(
                f"the autoencoder at '{self.name}' cannot read the {read.shape[-1]} numbers of each token there "
                f"({str(error).partition(chr(10))[0]}); expected one that reads {read.shape[-1]}"
            ) from error

    def _decoded(self, features: Float[Tensor, "*batch feature"], read: Float[Tensor, "*rows"]) -> Tensor:
        back = decoded(self.sae, features, read)
        if back.shape != read.shape:
            raise HookFunctionError(
                f"the autoencoder at '{self.name}' gave back {list(back.shape)} for {list(read.shape)}; "
                "expected the shape that it read"
            )
        return back


def decoded(
    sae: Autoencoder, features: Float[Tensor, "*batch feature"], read: Float[Tensor, "*rows"]
) -> Float[Tensor, "*given"]:
    """What features stand for, scaled back as what they were read from, where the autoencoder wants that."""
    scaled = isinstance(sae, SparseAutoencoder) and sae.cfg.scales_by_input
    return cast(Any, sae).decode(features, like=read) if scaled else sae.decode(features)


class SpliceFront:
    """Autoencoders in a model; `HybridLens` builds on it."""

    network: HookedNetwork
    hook_dict: dict[str, HookPoint]
    hook_points: dict[str, HookSpec]

    @public
    @contextmanager
    def splice(
        self, name: str, sae: Autoencoder, error: bool = True, *, d_in: Positive | None = None
    ) -> Generator[Splice]:
        """An autoencoder's features in the place of an activation, for the length of a ``with`` block.

        Every way of running inside the block goes through it: calls, caches, traces, prefill, decode steps.

        Args:
            name: the hook point, or an alias.
            sae: anything with `encode` and `decode`: `hybridlens.load_sae`'s, SAELens' own.
            error: whether what the autoencoder leaves out goes on too. The model's numbers are then what they were,
                and edits of features change what they change.
            d_in: how many numbers it reads at once; None for what it says of itself.

        Raises:
            UnknownNameError: there is no such point.
            InputError: see the module.
        """
        name = check_name(name, self.hook_dict)
        spec = self.hook_points[name]
        spliced = Splice(name, sae, error, _axes_read(spec, d_in or _width(sae)))
        points = spliced.points(spec)
        if spliced.features in self.hook_dict:
            raise InputError(f"an autoencoder is spliced in at {name!r} already; leave its block first")
        features, left = points[spliced.features], points.get(spliced.error)

        @reads_only
        def stand_in(x: Tensor, hook: HookPoint) -> Tensor:
            return spliced.through(x, features, left)

        for own, point in points.items():
            self.hook_dict[own] = self.network.points[own] = point
            sizes = tuple(point.sizes.get(axis) for axis in point.axes)
            self.hook_points[own] = HookSpec(own, point.axes, spec.layer, False, False, sizes)
        traced: Any = getattr(self, "_nnsight", None)
        if traced is not None:
            traced.take_in()
        try:
            with attached(self.hook_dict, [(name, stand_in)]):
                yield spliced
        finally:
            for own in points:
                for held in (self.hook_points, self.hook_dict, self.network.points):
                    held.pop(own, None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has the points of its own network: none that stood there for the length of a block."""
        self.__dict__.update(state)
        self.hook_dict = self.network.points
        for name in set(self.hook_points) - set(self.hook_dict):
            self.hook_points.pop(name)


def _width(sae: Autoencoder) -> int | None:
    """How many numbers an autoencoder reads, as it says itself; None where it does not."""
    given: Any = sae
    for holder in (given, getattr(given, "cfg", None)):
        width = getattr(holder, "d_in", None)
        if isinstance(width, int):
            return width
    weight, encoder = getattr(given, "W_dec", None), getattr(given, "encoder", None)
    if isinstance(encoder, nn.Linear):
        return encoder.in_features
    return int(weight.shape[-1]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _home(sae: Autoencoder, x: Tensor) -> dict[str, Any]:
    """In which dtype and where an autoencoder computes; as the activation is, where it does not say."""
    for holder in (getattr(sae, "W_dec", None), sae):
        dtype, device = (getattr(holder, what, None) for what in ("dtype", "device"))
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return {"dtype": dtype, "device": device if isinstance(device, torch.device) else x.device}
    return {"dtype": x.dtype, "device": x.device}


def _takes_heads(sae: Autoencoder) -> bool:
    """Whether it puts heads side by side itself, as SAELens' own do at hook_z."""
    own = isinstance(sae, SparseAutoencoder)
    return not own and getattr(getattr(sae, "cfg", None), "reshape_activations", None) == "hook_z"


def _axes_read(spec: HookSpec, width: int | None) -> int:
    """How many of a point's last axes an autoencoder of this width reads side by side.

    Raises:
        InputError: none fits, or the point has no numbers for each token.
    """
    axes = " ".join(spec.axes)
    behind = spec.sizes[2:]
    if spec.axes[:2] != ("b", "p") or not behind or spec.read_only or None in behind or spec.name.endswith("_indices"):
        raise InputError(
            f"an autoencoder reads a row of numbers for each token, but {spec.name!r} has the axes {axes}; "
            "splice one in at a residual stream, a part's write, or a state"
        )
    sizes = cast(tuple[int, ...], behind)
    if width is None:
        if len(sizes) == 1:
            return 1
        raise InputError(
            f"{spec.name!r} has the axes {axes} ({' × '.join(map(str, sizes))} numbers a token), and the autoencoder "
            f"does not say how many it reads; give d_in={prod(sizes)} for all side by side, or d_in={sizes[-1]}"
        )
    for n in (len(sizes), 1):
        if prod(sizes[-n:]) == width:
            return n
    fitting = dict.fromkeys((prod(sizes), sizes[-1]))
    raise InputError(
        f"the autoencoder reads {width} numbers, but {spec.name!r} holds {' × '.join(map(str, sizes))} for each token; "
        f"expected one that reads {' or '.join(map(str, fitting))}"
    )
