"""Stand between a model and its callers while something is open on it.

An open model has a class of its own, made of its real one, whose entries (``forward``, ``generate``) first ask which
opening a call belongs to. Whatever wraps, compiles or offloads a model ends in one of them, in whatever thread, and
copies are of the real class. The model gets that class back when the last opening on it closes.

A call belongs to the innermost opening of its context (``contextvars``). Contexts get lost where a generator is driven
in copies of one, as web frameworks do, or where a thread is handed ``model.generate``: so it also belongs to an opening
whose generator is on the call's stack, or that ``model.generate`` was read in. Openings that are for everyone come
last. A call that none of this holds for runs unpruned, with a warning.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tokenprune.core.errors import ModelError
from tokenprune.engine.attach.call_stack import OURS, frames, on_the_stack, opener, package, runs_in
from tokenprune.engine.attach.open_class import (
    Entry,
    Open,
    change_class,
    open_class,
    open_class_of,
    own_method,
    real_class,
)

LOST = (
    "the model is pruned in another thread or context, and this call belongs to none that is: it runs unpruned. Prune "
    "in this thread, too, or for every thread with tokenprune.attach; tokenprune.prune(model, processor, None) says "
    "that nothing is meant to be pruned here"
)


class UnprunedWarning(UserWarning):
    """A call ran unpruned while its model was pruned in another thread or context."""


class Handler(Protocol):
    """What an opening does with the calls that belong to it."""

    def call(self, entry: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call.

        Args:
            entry: name of the method.
            original: the model's own.
            args: that the caller gave by position.
            kwargs: that the caller gave by name.
        """

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Whether a call, made while another of the model is under way here, is a part of it and needs nothing."""


class Opening:
    """What is open on a model, until it is closed.

    Args:
        model: a module.
        handler: of the calls that belong to this.
        entries: the methods by which the model is called, the same for all openings on it; it may lack some.
        everywhere: whether calls of every thread and context belong to this, unless one of their own is open; else
            those of the context that opens it.
        inner: a part of the model that its calls end in, on which a guard is open.
        outer: the model, if this is such a guard: it comes after what else is open on the part.
    """

    def __init__(
        self,
        model: Any,
        handler: Handler,
        *,
        entries: Sequence[str] = ("forward", "generate"),
        everywhere: bool = False,
        inner: Any = None,
        outer: Any = None,
    ) -> None:
        self.model, self.everywhere, self.inner, self.outer = model, everywhere, inner, outer
        self.handler: Handler | None = handler  # None once closed, so that nothing is kept alive by a forgotten context
        self.generator = None if everywhere else opener()
        if not everywhere:
            _CONTEXT.set((*_CONTEXT.get(), self))
        with _LOCK:
            if not isinstance(model, Open):
                change_class(model, open_class(type(model), entries, _enter))
            kind = open_class_of(type(model))
            kind.openings = (*kind.openings, self)

    def close(self) -> None:
        """Close it, from whatever thread and context and as often as one likes."""
        _CONTEXT.set(tuple(opening for opening in _CONTEXT.get() if opening is not self))
        with _LOCK:
            if self.handler is None:
                return
            model, kind = self.model, open_class_of(type(self.model))
            self.handler = self.generator = self.model = self.inner = self.outer = None
            kind.openings = tuple(opening for opening in kind.openings if opening is not self)
            if kind.openings:
                return
            for entry in vars(kind).values():
                if isinstance(entry, Entry):
                    entry.forget()
            if type(model) is kind:  # else a class was derived from it meanwhile, as FSDP does
                change_class(model, real_class(kind))


_CONTEXT: ContextVar[tuple[Opening, ...]] = ContextVar("tokenprune_openings", default=())
_LOCK = threading.RLock()


def _opening_of(model: Any, read_in: Opening | None = None) -> Opening | None:
    """The opening that a call belongs to, made now; None if there is none.

    Args:
        model: that is called.
        read_in: the one that the called method was read in.
    """
    known = [opening for opening in type(model).openings if opening.handler is not None]
    here = _CONTEXT.get()
    found: list[Opening] = [opening for opening in known if opening in here]
    astray = [opening for opening in known if opening.generator is not None and opening not in here]
    found += [opening for opening in astray if on_the_stack(opening.generator)]
    if found:  # the innermost; a generator that waits for its caller comes after one that runs
        return max(found, key=lambda opening: (opening.outer is None, not _waits(opening), known.index(opening)))
    if read_in is not None and read_in.handler is not None:
        return read_in
    return next((opening for opening in reversed(known) if opening.everywhere), None)


@dataclass(eq=False)
class _Call:
    """A call that is under way in a context.

    Attributes:
        model: that is called.
        entry: name of the method.
        opening: that it belongs to; None if it passed.
        outer: the call that it was made in.
        over: whether it has ended; a context that was copied meanwhile goes on with it.
    """

    model: Any
    entry: str
    opening: Opening | None
    outer: _Call | None
    over: bool = False


_CALL: ContextVar[_Call | None] = ContextVar("tokenprune_call", default=None)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code would not look at the context again
def _meet(
    model: Any,
    entry: str,
    original: Callable[..., Any],
    read_in: Opening | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Answer a call of an open model."""
    opening = _opening_of(model, read_in)
    handler = None if opening is None else opening.handler
    if opening is None or handler is None:
        if any(known.outer is None for known in type(model).openings) and not within(model):
            outside = next(n for n, frame in enumerate(frames(sys._getframe(1))) if package(frame) not in OURS)
            warnings.warn(LOST, UnprunedWarning, stacklevel=outside + 2)
        return _called(_Call(model, entry, None, _CALL.get()), original, *args, **kwargs)
    if opening.model is not model:
        kind = type(model).__name__
        raise ModelError(
            f"this {kind} is a replica of one that is pruned, as DataParallel makes them; prune one device"
        )
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise ModelError("a model cannot be traced while it is pruned, as what stays differs from call to call")
    if not opening.everywhere and runs_in("torch.utils.checkpoint"):
        raise ModelError(
            "a model that is checkpointed as a whole runs again in the backward pass, which may come after the block; "
            "checkpoint its layers (model.gradient_checkpointing_enable()), or use tokenprune.attach"
        )
    here = _CONTEXT.set((*_CONTEXT.get(), opening))
    try:
        return _called(_Call(model, entry, opening, _CALL.get()), handler.call, entry, original, args, kwargs)
    finally:
        _CONTEXT.reset(here)


def _called(call: _Call, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = _CALL.set(call)
    try:
        return function(*args, **kwargs)
    finally:
        call.over = True
        _CALL.reset(token)


def within(model: Any) -> bool:
    """Whether a call of the model is under way in this context."""
    call = _CALL.get()
    while call is not None and (call.over or call.model is not model):
        call = call.outer
    return call is not None


def _enter(model: Any, entry: str) -> Callable[..., Any]:
    """A method of an open model as its callers get it.

    It remembers the opening that it was read in, as it may be called elsewhere; torch reads ``forward`` itself.
    """
    original, read_in = own_method(model, entry), None if entry == "forward" else _opening_of(model)

    def entered(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(model, Open):  # read while something was open, called when nothing is
            return original(*args, **kwargs)
        call = _CALL.get()
        if call is None or call.opening is None or call.over:
            return _meet(model, entry, original, read_in, args, kwargs)
        if call.opening.inner is model:
            return original(*args, **kwargs)
        if call.model is model:
            if call.entry == entry == "forward":  # by what wrapped this in the block, and is called first now
                return original(*args, **kwargs)
            innermost, handler = _CONTEXT.get()[-1], call.opening.handler
            if innermost is call.opening and handler is not None and handler.passes(entry, kwargs):
                return original(*args, **kwargs)
        return _meet(model, entry, original, read_in, args, kwargs)

    # Compiled code ends here, and what is called may be compiled again. Transformers reads the signature; other
    # attributes stay away, as those of torch.compile would lead around this function.
    reason = "the model is pruned, which cannot be a part of one graph; compile it without fullgraph"
    ends: Any = torch.compiler.disable(entered, recursive=False, reason=reason)  # type: ignore[no-untyped-call]
    found: Callable[..., Any] = functools.update_wrapper(ends, original, updated=())
    return found


def _waits(opening: Opening) -> bool:
    return opening.generator is not None and not on_the_stack(opening.generator)
