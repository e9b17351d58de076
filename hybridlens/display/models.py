"""What a lens, its configuration and its weights show: layers as a strip of what mixes their tokens, and their sizes.

How it fails: nothing is computed, so nothing does; a size that the model does not say is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hybridlens.display.markup import Plain, count, listed, many
from hybridlens.display.several import table_of
from hybridlens.display.shown import Displayed, Piece
from hybridlens.display.tables import Table
from hybridlens.display.texts import Strip

if TYPE_CHECKING:
    from hybridlens.config import LayerConfig, LensConfig

KINDS = {
    "ssm": "recurrence",
    "attention": "attention",
    "hybrid": "attention and recurrence side by side",
    "mlp": "no mixer",
    "dense": "MLP below",
    "experts": "mixture of experts below",
}
"""What a layer is drawn as."""


class ConfigShown(Displayed):
    """Of `LensConfig`."""

    def summary(self) -> str:
        """Family, layers, sizes."""
        return about(cast("LensConfig", self))

    def table(self) -> Table:
        """A row a layer."""
        return layer_table(cast("LensConfig", self))

    def view(self) -> tuple[Piece, ...]:
        """The layers as a strip, each kind of layer once, and the sizes of the whole."""
        cfg = cast("LensConfig", self)
        return (layer_strip(cfg), layer_kinds(cfg), model_sizes(cfg))


class LensShown(Displayed):
    """Of `HybridLens`."""

    def summary(self) -> str:
        """Family, layers, sizes, and where it is."""
        return about(self._config())

    def table(self) -> Table:
        """A row a layer."""
        return layer_table(self._config())

    def view(self) -> tuple[Piece, ...]:
        """As its configuration, and where to go on."""
        return self._config().view()

    def _config(self) -> LensConfig:
        return cast(Any, self).cfg


class WeightsShown(Displayed):
    """Of `Weights` and `StackedWeights`."""

    cfg: LensConfig
    folded: bool

    def summary(self) -> str:
        """Whose they are, where they are put, and whether norms are in them."""
        return f"{about(self.cfg)}; norms {'folded in, float32' if self.folded else 'apart'}"

    def table(self) -> Table:
        """A row a layer."""
        return layer_table(self.cfg)

    def view(self) -> tuple[Piece, ...]:
        """The kinds of layers, and the sizes of the whole."""
        return (layer_kinds(self.cfg), model_sizes(self.cfg))


def about(cfg: LensConfig) -> str:
    """A model in one line."""
    parts = [many(len(cfg.attention_layers), "with attention", "with attention")]
    parts += [many(len(cfg.ssm_layers), "recurrent", "recurrent")] if cfg.ssm_layers else []
    dtype = str(cfg.dtype).removeprefix("torch.")
    layers = f"{many(cfg.n_layers, 'layer')} ({', '.join(parts)})"
    return f"{cfg.family}, {layers}, d_model {cfg.d_model}, vocabulary {count(cfg.d_vocab)}, {dtype} on {cfg.device}"


def layer_strip(cfg: LensConfig) -> Strip:
    """The layers in order."""
    cells = [(str(i), (layer.type, *_mlp_kind(layer))) for i, layer in enumerate(cfg.layers)]
    used = {kind for _, kinds in cells for kind in kinds}
    return Strip(cells, {kind: words for kind, words in KINDS.items() if kind in used})


def layer_table(cfg: LensConfig) -> Table:
    """A row a layer, with what it has; nothing where it lacks it."""
    table = table_of([{"layer": i, **layer_facts(layer)} for i, layer in enumerate(cfg.layers)])
    return Table(table.columns, table.rows, _MEANINGS)


def layer_kinds(cfg: LensConfig) -> Table:
    """A row for each kind of layer, and which layers are of it."""
    kinds: dict[LayerConfig, list[int]] = {}
    for i, layer in enumerate(cfg.layers):
        kinds.setdefault(layer, []).append(i)
    table = table_of([{"layers": listed(at), **layer_facts(layer)} for layer, at in kinds.items()])
    some = [i for i in range(len(table.columns)) if any(row[i] is not None for row in table.rows)]
    rows = [tuple(row[i] for i in some) for row in table.rows]
    columns = tuple(table.columns[i] for i in some)
    return Table(columns, rows, {name: said for name, said in _MEANINGS.items() if name in columns})


_MEANINGS = {
    "window": "keys that a query sees, itself included",
    "state": "shape of one row's state",
    "taps": "of the convolution",
}


def layer_facts(layer: LayerConfig) -> dict[str, Plain]:
    """What one layer has."""
    attn, ssm, mlp = layer.attn, layer.ssm, layer.mlp
    return {
        "mixes by": KINDS[layer.type],
        "heads": None if attn is None else attn.n_heads,
        "kv heads": None if attn is None else attn.n_kv_heads,
        "d_head": None if attn is None else attn.d_head,
        "window": None if attn is None else attn.window,
        "recurrence": None if ssm is None else ssm.kind,
        "state": None if ssm is None or not ssm.state_shape else " × ".join(map(str, ssm.state_shape)),
        "taps": None if ssm is None else ssm.d_conv or None,
        "d_mlp": None if mlp is None else mlp.d_mlp,
        "experts": None if mlp is None or mlp.n_experts is None else f"{mlp.n_experts_per_token} of {mlp.n_experts}",
    }


def model_sizes(cfg: LensConfig) -> Table:
    """Sizes of the whole model."""
    sizes: dict[str, Plain] = {
        "d_model": cfg.d_model,
        "d_vocab": cfg.d_vocab,
        "n_ctx": "no limit" if cfg.n_ctx is None else cfg.n_ctx,
        "act_fn": cfg.act_fn,
        "device": str(cfg.device),
        "dtype": str(cfg.dtype).removeprefix("torch."),
    }
    return Table(tuple(sizes), [tuple(sizes.values())])


def _mlp_kind(layer: LayerConfig) -> tuple[str, ...]:
    if layer.mlp is None:
        return ()
    return ("dense" if layer.mlp.n_experts is None else "experts",)
