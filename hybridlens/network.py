"""The forward pass: a Hugging Face model's own weights, run through hook points, from state to state.

`HookedNetwork` holds no weights and changes nothing in the model it wraps; it calls the model's
modules in the model's order, with every intermediate at a `HookPoint`, and keeps nothing between
calls: what a run remembers goes out as a `HybridState` and comes back in as one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.components import Block, Pass, execution_device
from hybridlens.errors import InputError
from hybridlens.families.spec import Family, LensConfig
from hybridlens.hooks import HookPoint
from hybridlens.layer_state import AttentionState, LayerState, RecurrentState, newest
from hybridlens.shapes import KeyPositions, Lengths, Logits, Resid, Tokens
from hybridlens.slots import KeySlots
from hybridlens.state import HybridState


class Output(NamedTuple):
    """What a forward pass gives."""

    logits: Logits
    """At every position, or, if asked for, at each row's last token only."""
    state: HybridState


class HookedNetwork(nn.Module):
    """A hybrid model with every activation at a hook point."""

    def __init__(self, model: Any, family: Family, cfg: LensConfig) -> None:
        super().__init__()
        self.wrapped = (model,)
        self.family = family
        self.cfg = cfg
        self.signature = (
            f"{cfg.family}:{cfg.n_layers}x{cfg.d_model}:{cfg.n_kv_heads}x{cfg.d_head}"
            f":{cfg.d_channels}x{cfg.d_state or 1}x{cfg.d_conv}:{cfg.window}:"
            + "".join(kind[0] for kind in cfg.layer_types)
        )
        self.hook_embed = HookPoint("b p d")
        self.blocks = nn.ModuleList(family.block(model, cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = family.final_norm(model)
        self.hook_logits = HookPoint("b p v")
        self.points: dict[str, HookPoint] = {}
        for part in self.modules():  # found as plain attributes, not by nn.Module's search: hundreds a decode step
            part.__dict__.update(part.named_children())
        for name, module in self.named_modules():
            if isinstance(module, HookPoint):
                module.name = name
                self.points[name] = module

    def forward(
        self,
        tokens: Tokens,
        lengths: Lengths | None = None,
        state: HybridState | None = None,
        last_only: bool = False,
    ) -> Output:
        """Read `tokens` after `state`.

        Args:
            tokens: new tokens; shorter rows padded on the right.
            lengths: real new tokens of each row, 0 allowed; None where all rows are full.
            state: what was read before; None for nothing.
            last_only: unembed only each row's last real token, so that logits are [b 1 v].

        Raises:
            InputError: for a state of another model or batch size.
        """
        model = self.wrapped[0]
        device = execution_device(model.get_input_embeddings(), tokens.device)
        tokens = tokens.to(device)
        if state is not None:
            self._check(state, tokens.shape[0])
        run, key_positions, seen = plan(tokens, lengths, state, self.cfg.window)
        resid = self.hook_embed(self.family.embed(model, tokens))
        resid, layers = self._through(0, resid, run, state)
        logits = self._unembedded(resid, lengths, last_only)
        window = self.cfg.window
        return Output(logits, trimmed(HybridState(self.signature, seen, key_positions, tuple(layers), window), window))

    def resume(
        self,
        layer: int,
        resid: Resid,
        after: HybridState,
        before: HybridState | None = None,
        lengths: Lengths | None = None,
        last_only: bool = False,
    ) -> Output:
        """Go on in the middle of a forward pass that was run before; hooks of the layers below stay silent.

        Args:
            layer: the first layer to run; the number of layers for none.
            resid: what enters it: its `hook_resid_pre`.
            after: what that pass remembered, of which the layers below are taken over.
            before: what that pass continued from; None for nothing.
            lengths: real new tokens of each row; None where all rows are full.
            last_only: unembed only each row's last real token.

        Raises:
            InputError: a layer that is none, or states of another model or number of rows.
        """
        if not 0 <= layer <= self.cfg.n_layers:
            raise InputError(f"layer {layer} given, expected 0..{self.cfg.n_layers}")
        for state in (after, before):
            if state is not None:
                self._check(state, resid.shape[0])
        tokens = resid.new_zeros(resid.shape[:2], dtype=torch.long)
        run, _, _ = plan(tokens, lengths, before, self.cfg.window)
        resid, layers = self._through(layer, resid, run, before)
        slots = after.key_positions.shape[1]
        kept = tuple(newest(held, slots) for held in layers)  # as a sliding window left the layers below
        return Output(self._unembedded(resid, lengths, last_only), replace(after, layers=after.layers[:layer] + kept))

    def _through(
        self, first: int, resid: Resid, run: Pass, state: HybridState | None
    ) -> tuple[Resid, list[LayerState]]:
        """The layers from `first` on: the residual stream behind them, and what each remembers."""
        layers: list[LayerState] = []
        for layer in range(first, self.cfg.n_layers):
            block = cast(Block, self.blocks[layer])
            resid, held = block(resid, run, None if state is None else state.layers[layer])
            layers.append(held)
        return resid, layers

    def _unembedded(self, resid: Resid, lengths: Lengths | None, last_only: bool) -> Float[Tensor, "batch read vocab"]:
        """The logits at every position, or at each row's last token."""
        model = self.wrapped[0]
        resid = self.ln_final(resid.to(execution_device(model.get_output_embeddings(), resid.device)))
        if last_only:
            last = resid.shape[1] - 1 if lengths is None else lengths.to(resid.device).clamp(min=1) - 1
            resid = resid[torch.arange(resid.shape[0], device=resid.device), last][:, None]
        return self.hook_logits(self.family.unembed(model, resid))

    def empty_state(self, batch: int) -> HybridState:
        """The memory of `batch` rows that have read nothing."""
        model, cfg = self.wrapped[0], self.cfg
        dtype = cast(torch.dtype, model.dtype)
        layers: list[AttentionState | RecurrentState] = []
        for kind, block in zip(cfg.layer_types, self.blocks, strict=True):
            device = execution_device(cast(Block, block).home[0], model.device)
            if kind == "attention":
                nothing = torch.zeros(batch, cfg.n_kv_heads, 0, cfg.d_head, dtype=dtype, device=device)
                layers.append(AttentionState(nothing, nothing))
            else:
                conv = torch.zeros(batch, cfg.d_conv - 1, cfg.d_channels, dtype=dtype, device=device)
                shape = (batch, cfg.d_channels) if cfg.d_state is None else (batch, cfg.d_channels, cfg.d_state)
                layers.append(RecurrentState(conv, torch.zeros(shape, dtype=torch.float32, device=device)))
        device = execution_device(model.get_input_embeddings(), model.device)
        lengths = torch.zeros(batch, dtype=torch.long, device=device)
        return HybridState(self.signature, lengths, lengths.new_zeros(batch, 0), tuple(layers), cfg.window)

    def _check(self, state: HybridState, batch: int) -> None:
        if state.model != self.signature:
            raise InputError(f"the state is of a model {state.model}, but this model is {self.signature}")
        if state.batch != batch:
            raise InputError(f"the state holds {state.batch} rows, but {batch} rows of tokens were given")
        dtype = self.wrapped[0].dtype
        for held, block in zip(state.layers, self.blocks, strict=True):
            tensor = held.k if isinstance(held, AttentionState) else held.conv
            device = execution_device(cast(Block, block).home[0], tensor.device)
            if (tensor.dtype, tensor.device) != (dtype, device):
                raise InputError(
                    f"the state is {tensor.dtype} on {tensor.device}, but the model is {dtype} on "
                    f"{device}; read the prompt again with this model, or move the state with state.to"
                )


def plan(
    tokens: Tokens, lengths: Lengths | None, state: HybridState | None, window: int | None
) -> tuple[Pass, KeyPositions, Lengths]:
    """Positions, masks and key slots of a forward pass, and the tokens each row has read after it.

    A query sees the keys at positions up to its own and, with a window, fewer than `window` back.
    """
    batch, new = tokens.shape
    steps = torch.arange(new, device=tokens.device)
    valid = None
    if lengths is not None:
        lengths = lengths.to(tokens.device)
        valid = steps < lengths[:, None]
    grown = torch.full((batch,), new, device=tokens.device) if lengths is None else lengths
    if state is None:
        positions = steps.expand(batch, new)
        held = positions if valid is None else positions.masked_fill(~valid, -1)
        mask = None
        if window is not None and new > window:
            mask = ((steps[:, None] >= steps) & (steps[:, None] < steps + window))[None, None]  # truth values only
        return Pass(KeySlots(positions, held, mask, causal=True), positions, valid), held, grown
    positions = state.lengths.to(tokens.device)[:, None] + steps
    fresh = positions if valid is None else positions.masked_fill(~valid, -1)
    held = torch.cat([state.key_positions.to(tokens.device), fresh], dim=1)
    after = state.lengths.to(tokens.device) + grown
    # Where every query sees every key, no mask is needed; off the CPU, asking would cost more than it saves.
    if new == 1 and tokens.device.type == "cpu":
        oldest = 0 if window is None else (positions - window + 1).clamp_(min=0)
        seen = held >= oldest
        if bool((seen if valid is None else seen | ~valid).all()):
            return Pass(KeySlots(positions, held, None, causal=False), positions, valid), held, after
    mask = (positions[:, :, None] >= held[:, None, :]) & (held >= 0)[:, None, :]
    if window is not None:
        mask = mask & (positions[:, :, None] < (held + window)[:, None, :])
    if valid is not None:  # a padding query looks at everything, so that no softmax is empty
        mask = mask | ~valid[:, :, None]
    return Pass(KeySlots(positions, held, mask[:, None], causal=False), positions, valid), held, after


def trimmed(state: HybridState, window: int | None) -> HybridState:
    """The state without the leading key slots that no row's next token can see."""
    slots = state.key_positions.shape[1]
    if window is None or slots < window or state.key_positions.device.type == "meta":
        return state
    visible = state.key_positions > state.lengths[:, None] - window
    if bool(visible[:, 0].any()):
        return state
    needed = visible.any(dim=0)
    start = int(needed.int().argmax()) if bool(needed.any()) else slots
    layers = tuple(
        held.drop(start) if isinstance(held, AttentionState) else held for held in state.layers
    )
    return HybridState(state.model, state.lengths, state.key_positions[:, start:].clone(), layers, window)

