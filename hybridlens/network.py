"""The forward pass: a Hugging Face model's own weights, run through hook points, from state to state.

`HookedNetwork` holds no weights and changes nothing in the model it wraps; it calls the model's
modules in the model's order, with every intermediate at a `HookPoint`, and keeps nothing between
calls: what a run remembers goes out as a `HybridState` and comes back in as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.blocks import Block
from hybridlens.boundary_words import shown
from hybridlens.config import LensConfig, Opened
from hybridlens.devices import alone, execution_device, first_weight, sent
from hybridlens.effort import layer_done
from hybridlens.errors import InputError
from hybridlens.families.spec import Family, ends_of
from hybridlens.following import Following
from hybridlens.hooks import HookPoint, wanted
from hybridlens.mlps import HookedMoe
from hybridlens.passes import Pass, trimmed
from hybridlens.projections import same_weight
from hybridlens.shapes import Lengths, Logits, Resid, Tokens
from hybridlens.state import HybridState, Memories
from hybridlens.state_origin import check_state, signature
from hybridlens.visits import reading


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
        self.cfg = cfg = replace(cfg, eos_token_ids=ends_of(model, cfg.eos_token_ids))
        self.signature = signature(cfg)
        self.embed_scale = family.embed_scale(model.config)
        self.unembed_scale = family.unembed_scale(model.config)
        self.soft_cap = family.soft_cap(model.config)
        self.reads_embedding = any(layer.shared for layer in cfg.layers)
        self.attends, self.windows = bool(cfg.attention_layers), (cfg.window, cfg.windows)
        self.hook_embed = HookPoint("b p d", d=cfg.d_model)
        self.blocks = nn.ModuleList(family.block(model, cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = family.final_norm(model, cfg)
        self.hook_logits = HookPoint("b p v", v=cfg.d_vocab)
        self.points: dict[str, HookPoint] = {}
        for part in self.modules():  # found as plain attributes, not by nn.Module's search: hundreds a decode step
            part.__dict__.update(part.named_children())
        named = {name: module for name, module in self.named_modules() if isinstance(module, HookPoint)}
        for name in self._in_order(list(named)):
            named[name].name = name
            self.points[name] = named[name]
        mixtures = [part.parts for part in self.modules() if isinstance(part, HookedMoe)]
        experts, routers = {parts.experts for parts in mixtures}, {parts.router for parts in mixtures}
        self.following = Following(model, cfg.d_vocab, experts, routers)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: not the points that stand here for the length of a block, whose functions stay behind."""
        parts = dict(self.named_modules())
        return {**self.__dict__, "points": {name: point for name, point in self.points.items() if name in parts}}

    def _in_order(self, names: list[str]) -> list[str]:
        """Names of hook points in the order in which they fire."""
        for layer, block in enumerate(self.blocks):
            for point, behind in cast(Block, block).late.items():
                names.remove(f"blocks.{layer}.{point}")
                names.insert(names.index(f"blocks.{layer}.{behind}") + 1, f"blocks.{layer}.{point}")
        return names

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
        weights = self.following.check()
        tokens = sent(tokens, execution_device(self.wrapped[0].get_input_embeddings(), tokens.device))
        devices = self.devices(tokens.device)
        if state is not None:
            self._check(state, tokens.shape[0], weights, devices)
        run = Pass(tokens, lengths, state)
        with alone(self.wrapped[0]), reading(run.positions, lengths):
            resid, layers = self._through(0, self._embedded(tokens, run), run, state, devices)
            logits = self._unembedded(resid, lengths, last_only)
        return Output(logits, trimmed(self._state(run, tuple(layers), weights)))

    def stretch(
        self,
        given: Tokens | Resid,
        lengths: Lengths | None = None,
        start: int | None = None,
        stop: int | None = None,
        last_only: bool = False,
    ) -> Resid | Logits:
        """Part of a pass over rows that read nothing before; no state comes out, and other layers' hooks stay silent.

        Args:
            given: tokens; with `start`, the residual stream that enters that layer.
            lengths: real tokens of each row; None where all rows are full.
            start: the first layer to run; the number of layers for none; None to begin with the tokens.
            stop: the layer whose residual stream is wanted, which does not run; None for the logits.
            last_only: unembed only each row's last real token.

        Raises:
            InputError: a start behind layer 0 in a model whose layers read the embedding too (`reads_embedding`).
        """
        self.following.check()
        if start and self.reads_embedding:
            raise InputError(
                f"start_at_layer = {start} given, but layers of this model read the embedding beside the stream; run "
                f"the tokens with a hook on 'blocks.{start}.hook_resid_pre' that puts the stream in place"
            )
        given = given.to(execution_device(self.wrapped[0].get_input_embeddings(), given.device))
        devices = self.devices(given.device)
        tokens = given if start is None else given.new_zeros(given.shape[:2], dtype=torch.long)
        run = Pass(tokens, lengths, None)
        with alone(self.wrapped[0]), reading(run.positions, lengths):
            if start is None:
                given = self._embedded(tokens, run)
            elif self.reads_embedding:
                run.embedded = given
            resid, _ = self._through(start or 0, given, run, None, devices, stop)
            return self._unembedded(resid, lengths, last_only) if stop is None else resid

    def unread(
        self,
        given: Tokens | Resid,
        lengths: Lengths | None = None,
        start: int | None = None,
        last_only: bool = False,
    ) -> None:
        """A pass for its hooks alone, over rows that read nothing before.

        Behind the last layer it goes as far as somebody listens: at the last norm, at the unembedding, or at the
        logits, which at all positions are the largest tensor of a pass.

        Args:
            given: tokens; with `start`, the residual stream that enters that layer.
            lengths: real tokens of each row; None where all rows are full.
            start: as for `stretch`.
            last_only: unembed only each row's last real token.
        """
        resid = self.stretch(given, lengths, start, self.cfg.n_layers)
        head, norm = self.wrapped[0].get_output_embeddings(), self.ln_final
        run = Pass(resid.new_zeros(resid.shape[:2], dtype=torch.long), lengths, None)
        with alone(self.wrapped[0]), reading(run.positions, lengths):
            if not (wanted(norm.hook_scale, norm.hook_normalized, self.hook_logits) or _heard(head, norm.norm.module)):
                return
            normed = self._normed(resid)
            if wanted(self.hook_logits) or _heard(head):
                self.hook_logits(self.unembed(_last(normed, lengths) if last_only else normed))

    def _embedded(self, tokens: Tokens, run: Pass) -> Resid:
        """What enters layer 0."""
        embedded = self.wrapped[0].get_input_embeddings()(tokens)
        resid = self.hook_embed(embedded if self.embed_scale == 1.0 else embedded * self.embed_scale)
        if self.reads_embedding:
            run.embedded = resid
        return resid

    def resume(
        self,
        layer: int,
        resid: Resid,
        after: HybridState,
        before: HybridState | None = None,
        lengths: Lengths | None = None,
        last_only: bool = False,
        embedded: Resid | None = None,
    ) -> Output:
        """Go on in the middle of a forward pass that was run before; hooks of the layers below stay silent.

        Args:
            layer: the first layer to run; the number of layers for none.
            resid: what enters it: its `hook_resid_pre`.
            after: what that pass remembered, of which the layers below are taken over.
            before: what that pass continued from; None for nothing.
            lengths: real new tokens of each row; None where all rows are full.
            last_only: unembed only each row's last real token.
            embedded: the tokens' `hook_embed`, for a model whose later layers read it (`reads_embedding`).

        Raises:
            InputError: a layer that is none, states of another model or number of rows, or no `embedded` where it is
                needed.
        """
        if not 0 <= layer <= self.cfg.n_layers:
            raise InputError(f"layer {shown(layer)} given, expected 0..{self.cfg.n_layers}")
        weights, devices = self.following.check(), self.devices(resid.device)
        for state in (after, before):
            if state is not None:
                self._check(state, resid.shape[0], weights, devices)
        tokens = resid.new_zeros(resid.shape[:2], dtype=torch.long)
        run = Pass(tokens, lengths, before)
        run.embedded = None if embedded is None else embedded.to(resid.device)
        with alone(self.wrapped[0]), reading(run.positions, lengths):
            resid, layers = self._through(layer, resid, run, before, devices)
            logits = self._unembedded(resid, lengths, last_only)
        kept = tuple(  # as a sliding window left them
            {name: memory.newest(there[name].slots) for name, memory in held.items()}
            for held, there in zip(layers, after.layers[layer:], strict=True)
        )
        return Output(logits, replace(after, layers=after.layers[:layer] + kept))

    def through(self, tokens: Tokens, run: Pass, state: HybridState) -> tuple[Logits, list[Memories]]:
        """A pass that somebody else has laid out: its logits, and what each layer remembers; nothing is checked."""
        resid, layers = self._through(0, self._embedded(tokens, run), run, state, self.devices(tokens.device))
        return self._unembedded(resid, None, False), layers

    @property
    def observed(self) -> str | None:
        """Where a hook function, or a trace, acts in this thread's passes now; None where none does."""
        for name, point in self.points.items():
            if point.asked() or point.traced():
                return name
        for name, module in self.wrapped[0].named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                return name or type(module).__name__
        return None

    @property
    def homes(self) -> tuple[nn.Module, ...]:
        """The family's layers."""
        return tuple(cast(Block, block).home[0] for block in self.blocks)

    def devices(self, default: torch.device) -> list[torch.device]:
        """Where each layer computes."""
        return [execution_device(home, default) for home in self.homes]

    def _through(
        self,
        first: int,
        resid: Resid,
        run: Pass,
        state: HybridState | None,
        devices: Sequence[torch.device],
        stop: int | None = None,
    ) -> tuple[Resid, list[Memories]]:
        """The layers from `first` on, up to `stop`: the residual stream behind them, and what each remembers."""
        layers: list[Memories] = []
        for layer, block in enumerate(self.blocks):
            if layer >= first and (stop is None or layer < stop):
                resid, held = block(resid, run, None if state is None else state.layers[layer], devices[layer])
                layers.append(held)
                layer_done(resid.shape[0] * resid.shape[1], len(self.blocks))
        return resid, layers

    def _unembedded(self, resid: Resid, lengths: Lengths | None, last_only: bool) -> Float[Tensor, "batch read vocab"]:
        """The logits at every position, or at each row's last token."""
        resid = self._normed(resid)
        return self.hook_logits(self.unembed(_last(resid, lengths) if last_only else resid))

    def _normed(self, resid: Resid) -> Resid:
        """What the last norm gives."""
        return self.ln_final(resid.to(execution_device(self.ln_final.norm.module, resid.device)))

    def unembed(self, normed: Resid) -> Logits:
        """The logits of what the last norm gives, after multiplier and soft cap, past the hook points."""
        logits, head, cap = self.uncapped(normed), self.wrapped[0].get_output_embeddings(), self.soft_cap
        if cap is None or logits.requires_grad or type(head) is not nn.Linear or _heard(head):
            return self.capped(logits)
        return logits.div_(cap).tanh_().mul_(cap)  # nobody else has them: without room for two more of their size

    def uncapped(self, normed: Resid) -> Logits:
        """The same before the soft cap: linear in what the last norm gives."""
        head = self.wrapped[0].get_output_embeddings()
        logits = head(normed.to(execution_device(head, normed.device), self._dtype(head)))
        logits = logits if self.unembed_scale == 1.0 else logits * self.unembed_scale
        return logits.float() if self.family.logits_in_float32 else logits

    def capped(self, logits: Logits) -> Logits:
        """Logits after the soft cap, where the family has one."""
        cap = self.soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def opened(self, tokenizer: Any) -> Opened:
        """What is known of the model beside its sizes.

        Args:
            tokenizer: its tokenizer; None for none.
        """
        config, norm = self.wrapped[0].config, self.ln_final.norm
        return Opened(
            name=str(getattr(config, "name_or_path", "") or self.cfg.family),
            architecture=self.family.architecture,
            tokenizer=tokenizer,
            eps=norm.eps,
            norm_offset=norm.style.offset,
            soft_cap=self.soft_cap,
            tied=self.tied,
        )

    @property
    def tied(self) -> bool:
        """Whether embedding and unembedding are the same weights: as they are, or, where they are away, as configured.

        A configuration goes on saying so when one of them was given weights of its own, or an adapter.
        """
        model = self.wrapped[0]
        same = same_weight(model.get_input_embeddings(), model.get_output_embeddings())
        return bool(model.config.tie_word_embeddings) and same is not False

    @property
    def idle_parameters(self) -> int:
        """Parameters of routed experts that a token does not use."""
        idle = 0
        for layer in self.cfg.moe_layers:
            moe = cast(HookedMoe, self.blocks[layer].mlp)
            total = sum(weight.numel() for weight in moe.parts.experts.parameters())
            idle += total - total // (moe.cfg.n_experts or 1) * (moe.cfg.n_experts_per_token or 0)
        return idle

    def empty_state(self, batch: int) -> HybridState:
        """The memory of `batch` rows that have read nothing."""
        model = self.wrapped[0]
        dtype, layers = cast(torch.dtype, model.dtype), list[Memories]()
        for block, device in zip(self.blocks, self.devices(model.device), strict=True):
            mixers = cast(Block, block).mixers
            layers.append({name: mixer.empty(batch, dtype, device) for name, mixer in mixers.items()})
        device = execution_device(model.get_input_embeddings(), model.device)
        run = Pass(torch.zeros(batch, 0, dtype=torch.long, device=device), None, None)
        return self._state(run, tuple(layers), self.following.check())

    def _state(self, run: Pass, layers: tuple[Memories, ...], weights: str) -> HybridState:
        positions = run.key_positions if self.attends else run.key_positions[:, :0]  # no keys, no slots
        state = HybridState(self.signature, run.lengths, positions, layers, self.windows[0], weights, self.windows[1])
        return state.planned_as(run.plan if self.attends or run.plan is None else run.plan.unslotted())

    def _dtype(self, module: nn.Module) -> torch.dtype:
        """Of a module's weights; of the model where they are packed."""
        weight = first_weight(module)
        return weight.dtype if weight is not None and weight.is_floating_point() else self.wrapped[0].dtype

    def _check(self, state: HybridState, batch: int, weights: str, devices: Sequence[torch.device]) -> None:
        check_state(state, batch, self.signature, weights, self._dtype(self.wrapped[0]), devices)


def _last(resid: Resid, lengths: Lengths | None) -> Float[Tensor, "batch one d_model"]:
    """Of each row its last real token."""
    if lengths is None:
        return resid[:, -1:]
    last = sent(lengths, resid.device).clamp(min=1) - 1
    return resid[torch.arange(resid.shape[0], device=resid.device), last][:, None]


def _heard(*modules: nn.Module) -> bool:
    """Whether somebody put a hook on any of these modules."""
    return any(module.__dict__["_forward_hooks"] or module.__dict__["_forward_pre_hooks"] for module in modules)
