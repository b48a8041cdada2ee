"""Prune inside the LLM: from a stage on, decoder layers see fewer tokens, and nothing of the model is rewritten.

While a call of the model runs, forward pre-hooks sit on its decoder layers. At a stage they shorten the hidden states;
behind it they shorten what is aligned with them (``prefill``). Each layer then caches what it saw, so that in decoding
each is given a mask, and position embeddings if need be, for a length of its own (``decoding``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core import stages
from tokenprune.core.errors import ModelError
from tokenprune.core.plan import Operation
from tokenprune.core.steps import Step, scoring_layers
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.arguments import Arguments, named, valid_tokens
from tokenprune.engine.decoder.decoder_checks import (
    before_mlp,
    check_behind_attention,
    check_cache,
    check_checkpointing,
    check_decoder,
    check_uncompiled,
)
from tokenprune.engine.decoder.decoding import Decoding, windows_of
from tokenprune.engine.decoder.deepstack import DeepStack
from tokenprune.engine.decoder.inside_plan import HeldPrompt, InsidePlan
from tokenprune.engine.decoder.operation_hooks import on_rows, operation_hooks
from tokenprune.engine.decoder.operations import Rows, Running
from tokenprune.engine.decoder.prefill import Prefill
from tokenprune.engine.decoder.tap import Attended, tapped

_ACTIVE: ContextVar[InsideLLM | None] = ContextVar("tokenprune_inside", default=None)
_ENTERED: ContextVar[tuple[ExitStack, ...]] = ContextVar("tokenprune_entered", default=())  # to be closed, by context
_FORWARD: ContextVar[Prefill | Decoding | None] = ContextVar("tokenprune_forward", default=None)


@contextmanager
def nothing_inside() -> Iterator[None]:
    """Nothing is pruned inside the LLM in this block, which lies within one function."""
    active, forward = _ACTIVE.set(None), _FORWARD.set(None)
    try:
        yield
    finally:
        _FORWARD.reset(forward)
        _ACTIVE.reset(active)


class InsideLLM:
    """Prunes at decoder layers while it is entered, in the entering thread alone.

    Other threads may run the same model meanwhile: the hooks do nothing there, and if one is removed just then, torch
    calls it without the keyword arguments.

    Args:
        model: with a decoder of the usual build.
        plan: what prunes, and the prompts.

    Attributes:
        stages: what went on from each step in the last prefill; empty before it.
        seconds: that all selections took.
        held: what the last cache that was filled holds; None before it.

    Raises:
        ModelError: if the decoder is built in another way.
    """

    def __init__(self, model: Any, plan: InsidePlan) -> None:
        self.model, self.decoder, self.plan, active = model, model.get_decoder(), plan, plan.active
        self.steps, self.prompt = plan.steps, plan.prompt
        self.active = None if active is None or bool(active.all()) else active.cpu()
        self.kind = check_decoder(self.decoder)
        check_behind_attention(self.decoder, plan)
        self._windows = windows_of(self.decoder.config, len(self.decoder.layers))
        if self.kind == "padding" and self.active is not None and _splits(self.active):
            raise ModelError(
                "flash attention cannot compute a layer in which other tokens ask than give keys and values; load the "
                "model with sdpa"
            )
        self.stages: list[Alive] = []
        self.seconds = {"selection": 0.0}
        self._caches: WeakKeyDictionary[Any, Mapping[int, Alive]] = WeakKeyDictionary()
        self.held: HeldPrompt | None = None

    def __enter__(self) -> InsideLLM:
        check_uncompiled(self.model, self.decoder)
        with ExitStack() as stack:  # closes again if it is interrupted
            stack.callback(_ACTIVE.reset, _ACTIVE.set(self))
            stack.callback(_FORWARD.reset, _FORWARD.set(None))  # an interrupted forward does not end itself
            for handle in self._hooks():
                stack.callback(handle.remove)
            for index in self._partial():
                stack.enter_context(tapped(self.decoder.layers[index].self_attn, self._asking))
            for index in _read(self.steps):
                stack.enter_context(tapped(self.decoder.layers[index].self_attn, self._attended))
            _ENTERED.set((*_ENTERED.get(), stack.pop_all()))
        return self

    def _hooks(self) -> Iterator[RemovableHandle]:
        decoder = self.decoder
        yield decoder.register_forward_pre_hook(self._begin, with_kwargs=True)
        yield decoder.register_forward_hook(self._end, always_call=True)
        yield decoder.rotary_emb.register_forward_hook(self._rotated, with_kwargs=True)
        for index in range(self._first(), len(decoder.layers)):
            hook = functools.partial(self._before_layer, index)
            # Before hooks of the user's, which then see what the layer sees.
            yield decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        for index in self._partial():
            yield from operation_hooks(decoder.layers[index], self._running)
        for index in sorted({_layer(step) for step in self.steps if step.stage.behind_attention}):
            layer = decoder.layers[index]
            if any(step.stage == stages.decoder(index, after="attention") for step in map(_plain, self.steps)):
                yield before_mlp(layer).register_forward_pre_hook(functools.partial(self._attended_by, layer))
                yield from on_rows(layer.mlp, self._behind)
            yield layer.register_forward_hook(functools.partial(self._after_layer, index))

    def _partial(self) -> list[int]:
        """Layers in which not everything runs."""
        active = self.active
        return [] if active is None else (~active.all(2).all(1)).nonzero().flatten().tolist()

    def resume(self, cache: Any, held: HeldPrompt) -> None:
        """Go on with a cache that an earlier call filled, or a copy of one."""
        self.held = held
        self._caches[cache] = held.layers

    def knows(self, cache: Any) -> bool:
        """Whether a cache holds the prompt as this pruned it."""
        return cache in self._caches

    def _first(self) -> int:
        """The first layer that sees less than the prompt, or does less with it."""
        steps = (0 if step.stage.earlier_caches else _layer(step) for step in self.steps)
        return int(min([*steps, *self._partial(), *([0] if self.prompt.bias is not None else [])]))

    def _behind(self) -> Rows | None:
        forward = self._filling()
        return None if forward is None else forward.behind

    def _attended_by(self, layer: nn.Module, norm: nn.Module, args: tuple[Any, ...]) -> None:
        if (forward := self._filling()) is not None:
            forward.attended_by(layer, args[0])

    def _after_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if (forward := self._filling()) is None:
            return output
        if isinstance(output, Tensor):
            return forward.leave(index, layer, output)
        return forward.leave(index, layer, output[0]), *output[1:]

    def _filling(self) -> Prefill | None:
        forward = _FORWARD.get()
        return forward if _ACTIVE.get() is self and isinstance(forward, Prefill) else None

    def _running(self) -> Running | None:
        forward = self._filling()
        return None if forward is None else forward.running

    def _asking(self, what: Attended) -> Rows | None:
        running = self._running()
        return running.rows.receivers if running is not None else None

    def __exit__(self, *_: object) -> None:
        *outer, stack = _ENTERED.get()
        _ENTERED.set(tuple(outer))
        stack.close()

    @contextmanager
    def running(self, arguments: Arguments) -> Iterator[None]:
        """For who calls the decoder's layers one by one: hooks are on, and a prefill has begun.

        Args:
            arguments: of the decoder, ``inputs_embeds`` and ``attention_mask``, and those of ``DeepStack``.
        """
        with self:
            _FORWARD.set(self._prefill(arguments, None))
            try:
                yield
            finally:
                _FORWARD.set(None)

    def _begin(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments | None = None
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        if _ACTIVE.get() is not self or kwargs is None:
            return None
        arguments = named(decoder, args, kwargs)
        cache = arguments.get(CACHE)
        held = self._caches.get(cache) if cache is not None and int(cache.get_seq_length()) else None
        forward = self._prefill(arguments, cache) if held is None else self._decode(arguments, cache, held)
        _FORWARD.set(forward)
        return None if forward.stack is None else ((), {**arguments, **forward.stack.left})

    def _prefill(self, arguments: Arguments, cache: Any) -> Prefill:
        embeds, columns = arguments["inputs_embeds"], self.prompt.columns
        inner = self.active is not None or any(step.stage.after for step in self.steps)
        check_checkpointing(self.decoder, self._first(), inner=inner)
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past or embeds.shape[1] < columns:
            raise ModelError(
                "a pruner inside the LLM needs the whole prompt in one forward: leave prefill_chunk_size, and give no "
                "cache but one that was filled in this block"
            )
        check_cache(cache)
        prompt, valid = self.prompt.aligned(embeds), valid_tokens(arguments.get("attention_mask"), embeds)
        if embeds.shape[1] > columns and any(step.stage.cuts_caches for step in self.steps):
            raise ModelError(
                "a pruner that cuts caches needs one that holds the prompt alone: leave use_cache on, and no assistant"
            )
        stack = DeepStack.of(arguments, self._first())
        return Prefill(self.decoder, self.kind, self.steps, prompt, valid, embeds, columns, self.active, stack)

    def _decode(self, arguments: Arguments, cache: Any, held: Mapping[int, Alive]) -> Decoding:
        mask, columns = arguments.get("attention_mask"), self.prompt.columns
        tail = mask[:, columns:].bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        tail = None if tail is None or bool(tail.all()) else tail
        return Decoding(self.decoder, self.kind, cache, held, columns, tail, self._windows)

    def _end(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """End a call: runs after a failure too, with ``output`` None."""
        if _ACTIVE.get() is not self:
            return
        forward = _FORWARD.get()
        _FORWARD.set(None)
        if output is None or forward is None:
            return
        forward.finish(output)
        if isinstance(forward, Prefill):
            self.stages = forward.stages
            self.seconds["selection"] += forward.seconds["selection"]
            if (cache := cache_of(output)) is not None:
                # What generate added to the prompt is decoded like all that comes later, and may be taken back.
                added = forward.embeds.shape[1] - self.prompt.columns
                held = {alive: alive.first(alive.slots.shape[1] - added) for alive in forward.layers.values()}
                self._caches[cache] = layers = {i: held[alive] for i, alive in forward.layers.items()}
                self.held = HeldPrompt(self.plan, layers)

    def _rotated(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any = None) -> None:
        if _ACTIVE.get() is self and (forward := _FORWARD.get()):
            forward.rotations.note(named(module, args, kwargs), output)

    def _attended(self, what: Attended) -> None:
        if _ACTIVE.get() is self and (forward := _FORWARD.get()):
            forward.note(what)

    def _before_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Arguments | None = None
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        forward = _FORWARD.get()
        if _ACTIVE.get() is not self or forward is None or kwargs is None:
            return None
        arguments = named(layer, args, kwargs)
        if forward.idle(index, arguments):
            return None
        entered = forward.enter(index, layer, arguments)
        return (entered.pop("hidden_states"),), entered  # where decoders of transformers put them, and others look


def _splits(active: Tensor) -> bool:
    """Whether, in some layer, other tokens ask than give keys and values."""
    return not torch.equal(active[:, Operation.ATTENTION_SOURCE], active[:, Operation.ATTENTION_RECEIVER])


def _plain(step: Step) -> Step:
    return replace(step, stage=replace(step.stage, earlier_caches=False))


def _read(steps: Sequence[Step]) -> list[int]:
    """Layers whose attention is read as it runs: before a stage, or of the stage's own layer if that has run."""
    found = []
    for step in steps:
        layers = scoring_layers(step.selector.requires)
        if step.stage.behind_attention:
            found += [_layer(step)] if layers else []
        elif "previous" in layers:
            found.append(_layer(step) - 1)
    return found


def _layer(step: Step) -> int:
    assert step.stage.layer is not None
    return step.stage.layer
