"""`TunedLens`: an affine map for each place of the residual stream, as a value; saved, loaded, and read from others.

What stands at a place goes through x + A x + b before it is unembedded (Belrose et al. 2023, "Eliciting Latent
Predictions from Transformers with the Tuned Lens"); with A = 0 and b = 0 it is the logit lens.

The published format (the library `tuned-lens`) is a folder with config.json and the maps of the streams that enter each
layer. Its tensors are pickled there (params.pt), and a pickle can run code: they are read once they are converted to
params.safetensors, under the same names.

How it fails: maps of another model, by its architecture or its weights, raise `InputError`; so does a place that has
no map. The published format does not say which weights it was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.stream.logit_lens import read_places
from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.checkpoint_files import CheckpointFiles, one_line
from hybridlens.display import Curve, Table, many, number
from hybridlens.errors import CheckpointError, InputError
from hybridlens.hub import CONFIG
from hybridlens.model import HybridLens
from hybridlens.viz.plotted import Plotted

PARAMS = "params.safetensors"

FIELDS = {
    "base_model_name_or_path", "base_model_revision", "d_model", "num_hidden_layers", "bias", "unembed_hash",
    "lens_type",
}  # fmt: skip
"""Of a published config.json."""


def affine(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, "d_model d_model"], bias: Float[Tensor, "d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """x + A x + b, computed in float32, in the dtype of x."""
    wide = x.float()
    return (wide + wide @ weight.T + bias).to(x.dtype)


@dataclass(frozen=True, eq=False)
class TunedLens(Plotted, Stored):
    """Affine maps from places of the residual stream to what is unembedded.

    Attributes:
        places: hook points, in forward order.
        weight: A of each, float32: x + A x + b.
        bias: b of each.
        held_out: KL(model ‖ read there) over texts that were not fitted to, in nats a token; NaN where not known.
        held_out_logit_lens: the same without the maps.
        texts: how many were fitted to.
        tokens: how many those have.
        model: signature of the architecture.
        weights: fingerprint of the model's weights; empty where not known.
    """

    places: tuple[str, ...]
    weight: Float[Tensor, "place d_model d_model"]
    bias: Float[Tensor, "place d_model"]
    held_out: Float[Tensor, "place"]
    held_out_logit_lens: Float[Tensor, "place"]
    texts: int
    tokens: int
    model: str
    weights: str

    def translate(self, place: str, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What is unembedded for the streams at a place, in their dtype; computed in float32.

        Raises:
            InputError: the place has no map.
        """
        if place not in self.places:
            raise InputError(f"there is no map for {place!r}; places with one are {', '.join(self.places)}")
        at = self.places.index(place)
        return affine(x, self.weight[at].to(x.device), self.bias[at].to(x.device))

    def check(self, lens: HybridLens) -> None:
        """Refuse a model that the maps were not made for.

        Raises:
            InputError: another architecture, or other weights.
        """
        if self.model != lens.network.signature:
            raise InputError(
                f"the tuned lens is of a model {self.model}, but this model is {lens.network.signature}; fit one to it"
            )
        weights = lens.network.following.check()
        if self.weights and weights and self.weights != weights:
            raise InputError("the tuned lens was fitted to other weights than the model has now; fit one to these")

    def summary(self) -> str:
        """How many maps, and what they bring."""
        if bool(self.held_out.isnan().any()):
            return f"{many(len(self.places), 'affine map')}, held-out loss not known"
        ours, plain = (number(float(loss.mean()), 3) for loss in (self.held_out, self.held_out_logit_lens))
        fitted = f"{many(len(self.places), 'affine map')} fitted to {many(self.tokens, 'token')}"
        return f"{fitted}; {ours} nats a token from the answer on held-out texts, {plain} without them"

    def table(self) -> Table:
        """A row a place."""
        values = {"held_out": self.held_out, "held_out_logit_lens": self.held_out_logit_lens}
        meanings = {"held_out": "KL of the model's answer from what is read, in nats a token, on held-out texts"}
        return Table.of(values, {"place": self.places}, meanings)

    def view(self) -> tuple[Curve, Table]:
        """The loss place by place, and the table."""
        lines = {"tuned lens": self.held_out.tolist(), "logit lens": self.held_out_logit_lens.tolist()}
        across = "places in forward order"
        return Curve(list(range(len(self.places))), lines, across, "KL in nats a token, held out"), self.table()


@public
def load_published(lens: HybridLens, folder: str | Path) -> TunedLens:
    """The maps that the library `tuned-lens` fitted, from a folder with config.json and params.safetensors.

    Args:
        lens: the model that they were fitted to; that it has the same weights cannot be checked.
        folder: where they are.

    Raises:
        CheckpointError: a file is missing or damaged, the configuration has fields that are not known, or maps do not
            fit the model.
    """
    files, n, d = CheckpointFiles(folder), lens.cfg.n_layers, lens.cfg.d_model
    config, where = files.json(CONFIG), f"'{folder}': {CONFIG}"
    if config is None:
        raise CheckpointError(f"'{folder}' has no {CONFIG}, which says what a tuned lens is")
    unknown = sorted(set(config) - FIELDS)
    if unknown:
        raise CheckpointError(f"{where}: the field {shown(unknown[0])} is unknown, and may change what is computed")
    for key, expected in {"lens_type": "linear_tuned_lens", "d_model": d, "num_hidden_layers": n}.items():
        given: Any = config.get(key, expected if key == "lens_type" else None)
        if given != expected:
            raise CheckpointError(f"{where}: {key} is {shown(given)}, expected {shown(expected)}, as this model has")
    tensors = _tensors(files)
    shapes: Mapping[str, list[int]] = {f"{layer}.weight": [d, d] for layer in range(n)}
    if config.get("bias", True):
        shapes = {**shapes, **{f"{layer}.bias": [d] for layer in range(n)}}
    for name in sorted({*shapes, *tensors}):
        found = list(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name) or not bool(tensors[name].isfinite().all()):
            raise CheckpointError(
                f"'{folder}': {PARAMS}: {name} is {found or 'missing'}, expected {shapes.get(name, 'no such tensor')}, "
                "of finite numbers"
            )
    unknown_loss = torch.full((n,), torch.nan)
    zero = torch.zeros(d)
    return TunedLens(
        read_places(lens, [f"blocks.{layer}.hook_resid_pre" for layer in range(n)])[:-1],
        torch.stack([tensors[f"{layer}.weight"].float() for layer in range(n)]),
        torch.stack([tensors.get(f"{layer}.bias", zero).float() for layer in range(n)]),
        unknown_loss, unknown_loss.clone(), 0, 0, lens.network.signature, "",
    )  # fmt: skip


def _tensors(files: CheckpointFiles) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = files.path(PARAMS)
    if path is None:
        pickled = files.path("params.pt") is not None
        raise CheckpointError(
            f"'{files.source}' has "
            + ("its maps pickled (params.pt), and a pickle can run code; convert" if pickled else "no maps; put")
            + f" them to {PARAMS}, under the same names, with safetensors.torch.save_file"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"'{files.source}': {PARAMS} is damaged ({one_line(error)})") from error
