"""Prune the visual tokens of a loaded model: in a ``with`` block, or until a handle is removed."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import Any

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.engine.attach.block import Block
from tokenprune.engine.attach.handlers import Guard, Unpruned
from tokenprune.engine.attach.interception import Opening, UnprunedWarning
from tokenprune.engine.attach.wrapped import unwrapped
from tokenprune.engine.loading import session_for
from tokenprune.engine.trace import Trace
from tokenprune.pruners.base import Pruner, as_pruner
from tokenprune.pruners.none import NoPruning

__all__ = ["Attached", "Trace", "UnprunedWarning", "attach", "prune"]

PrunerLike = str | Pruner | Sequence[str | Mapping[str, Any] | Pruner] | None


def prune(
    model: Any,
    processor: Any,
    pruner: PrunerLike,
    *,
    keep_tokens: int | None = None,
    keep_ratio: float | None = None,
    average_tokens: float | None = None,
    flops: float | None = None,
    text_tokens: int = 0,
    text_tower: str | None = None,
    scope: str | None = None,
    question: str | Sequence[str] | None = None,
    trace_features: bool = False,
    **options: Any,
) -> PruneBlock:
    """Prune what ``model.generate(**inputs)`` and ``model(**inputs)`` are given in this block.

    Sequences that ``generate`` returns begin with the caller's prompt, as ever; logits of a forward are those of the
    shortened prompt. Blocks nest, and the innermost applies alone. A cache must be continued in the block that made it.

    A block prunes the calls of the context that opened it: its thread, its asyncio task, and where a generator opened
    it, that generator, whoever drives it. It also prunes a thread that is handed ``model.generate`` as it is read in
    the block. Any other call runs unpruned and says so with an ``UnprunedWarning``; ``attach`` prunes them all.

    Args:
        model: of a family that an adapter knows, or what wraps it: PEFT, ``torch.compile``, data parallelism.
        processor: that belongs to it.
        pruner: a registered name, or a pruner, or a list of them for stages that follow one another, see ``Compose``.
            None prunes nothing, whatever is open around the block or attached to the model.
        keep_tokens: visual tokens that stay, for each image; or
        keep_ratio: which share of them, in (0, 1]; or
        average_tokens: visual tokens in a layer of the LLM, mean over its layers; or
        flops: most FLOPs of the decoder layers in prefill, for a prompt of one image and
        text_tokens: so many other tokens. None of the four if the pruner's options fix its budget.
        text_tower: see ``ModelAdapter``.
        scope: see ``ModelAdapter``.
        question: what relevance is measured against, one for all rows or one a row; None to read it off the prompts.
        trace_features: whether the trace keeps the features that a pruner made, which can be large.
        **options: of the pruner, if it is given by name.

    Returns:
        For a ``with`` statement, which gives the trace, or a decorator.

    Raises:
        TokenPruneError: when it is entered, if pruner, budget and model are not possible together.
    """
    budget = _given(keep_tokens, keep_ratio, average_tokens, flops, text_tokens)
    adapting = {"text_tower": text_tower, "scope": scope}

    def attached(trace: Trace) -> Attached:
        core = unwrapped(model)
        handler = _handler(core, processor, pruner, options, budget, adapting, question, trace, trace_features)
        return Attached(trace, handler, _openings(core, handler, everywhere=False))

    return PruneBlock(attached)


class PruneBlock(ContextDecorator):
    """A ``with`` block of ``prune``; it may be entered again."""

    def __init__(self, attached: Callable[[Trace], Attached]) -> None:
        self._attached, self._entered = attached, list[Attached]()

    def __enter__(self) -> Trace:
        self._entered.append(self._attached(Trace()))
        return self._entered[-1].trace

    def __exit__(self, *_: object) -> None:
        self._entered.pop().remove()

    def _recreate_cm(self) -> PruneBlock:
        return PruneBlock(self._attached)

    def __call__(self, function: Any) -> Any:
        """The function, with each call of it in a block.

        Raises:
            ConfigError: for generators and coroutines, which go on after the call.
        """
        later = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        if any(kind(function) for kind in later):
            raise ConfigError(
                f"{function.__name__} goes on after it was called, so a decorator cannot prune it; open the block in it"
            )
        return super().__call__(function)


@dataclass(eq=False)
class Attached:
    """A pruner on a model, in every thread, until it is removed.

    Attributes:
        trace: of the last calls.
    """

    trace: Trace
    _handler: Block | Unpruned | None
    _openings: Sequence[Opening]

    def remove(self) -> None:
        """Leave the model as it was; a second time does nothing. Calls that are under way end as they began."""
        for opening in self._openings:
            opening.close()
        if self._handler is not None:
            self._handler.forget()
        self._handler = None  # it knows the model


def attach(
    model: Any,
    processor: Any,
    pruner: PrunerLike,
    *,
    keep_tokens: int | None = None,
    keep_ratio: float | None = None,
    average_tokens: float | None = None,
    flops: float | None = None,
    text_tokens: int = 0,
    text_tower: str | None = None,
    scope: str | None = None,
    question: str | Sequence[str] | None = None,
    trace_calls: int = 100,
    trace_features: bool = False,
    **options: Any,
) -> Attached:
    """Prune what a model is given in every thread and context, until the handle is removed.

    A ``prune`` block of a call's own applies instead; of several handles on a model the last that is still attached.

    Args:
        model: see ``prune``.
        processor: see ``prune``.
        pruner: see ``prune``.
        keep_tokens: see ``prune``.
        keep_ratio: see ``prune``.
        average_tokens: see ``prune``.
        flops: see ``prune``.
        text_tokens: see ``prune``.
        text_tower: see ``prune``.
        scope: see ``prune``.
        question: see ``prune``.
        trace_calls: of so many last calls the trace tells.
        trace_features: see ``prune``.
        **options: of the pruner, if it is given by name.

    Returns:
        The handle.

    Raises:
        TokenPruneError: if pruner, budget and model are not possible together.
    """
    if trace_calls < 1:
        raise ConfigError(f"trace_calls must be at least 1, got {trace_calls}")
    budget = _given(keep_tokens, keep_ratio, average_tokens, flops, text_tokens)
    model, trace = unwrapped(model), Trace(deque(maxlen=trace_calls))
    adapting = {"text_tower": text_tower, "scope": scope}
    handler = _handler(model, processor, pruner, options, budget, adapting, question, trace, trace_features)
    return Attached(trace, handler, _openings(model, handler, everywhere=True))


def _openings(model: Any, handler: Block | Unpruned, *, everywhere: bool) -> list[Opening]:
    """What is opened on a model, and on the part that its calls end in."""
    part = getattr(model, "base_model", model)
    if part is model:
        return [Opening(model, handler, everywhere=everywhere)]
    guard = Guard(model) if isinstance(handler, Block) else handler
    opening = Opening(model, handler, everywhere=everywhere, inner=part)
    return [opening, Opening(part, guard, entries=("forward",), everywhere=everywhere, outer=model)]


def _given(
    keep_tokens: int | None,
    keep_ratio: float | None,
    average_tokens: float | None,
    flops: float | None,
    text_tokens: int,
) -> dict[str, Any]:
    """The arguments that make a budget."""
    return {
        "keep_tokens": keep_tokens,
        "keep_ratio": keep_ratio,
        "average_tokens": average_tokens,
        "flops": flops,
        "text_tokens": text_tokens,
    }


def _handler(
    model: Any,
    processor: Any,
    pruner: PrunerLike,
    options: Mapping[str, Any],
    budget: Mapping[str, Any],
    adapting: Mapping[str, Any],
    question: str | Sequence[str] | None,
    trace: Trace,
    trace_features: bool,
) -> Block | Unpruned:
    """What prunes the calls of a model, checked."""
    given = [name for name, value in budget.items() if value is not None and (name, value) != ("text_tokens", 0)]
    if pruner is None:
        if given or options:
            raise ConfigError(f"pruner is None, so that nothing is pruned; leave out {', '.join((*given, *options))}")
        return Unpruned()
    chosen = as_pruner(pruner, options)
    if isinstance(chosen, NoPruning):
        return Unpruned()
    if chosen.budget is None:
        target = Budget(**budget)
    elif given:
        raise ConfigError(f"the pruner's options fix its budget ({chosen.budget}); leave out {', '.join(given)}")
    else:
        target = chosen.budget
    session = session_for(model, processor, **adapting)
    session.check_pruner(chosen)
    session.adapter.check_budget(chosen, session.adapter.spec, target)
    return Block(session, chosen, target, question, trace, trace_features)
