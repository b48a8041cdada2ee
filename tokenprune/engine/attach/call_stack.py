"""Who calls: the frames of the stack, and which of them opened something."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FrameType

OURS = {"tokenprune", "contextlib", "torch"}


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, its caller, the caller's caller, ..."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def on_the_stack(wanted: FrameType | None) -> bool:
    """Whether a frame is one of the callers of this."""
    return any(frame is wanted for frame in frames(sys._getframe(1)))  # not this one, which would hold itself


def runs_in(module: str) -> bool:
    """Whether a function of a module is one of the callers of this."""
    return any(frame.f_globals.get("__name__") == module for frame in frames(sys._getframe(1)))


def package(frame: FrameType) -> str:
    """The package that a frame's code is of."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def opener() -> FrameType | None:
    """The frame whose ``with`` statement opens something, if it may go on in another context: that of a generator.

    A generator that ``contextlib`` drives, a user's own context manager, only passes the statement on.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (package(frame) in OURS or _drives(frame.f_back)):
        frame = frame.f_back
    migrates = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return frame if frame is not None and frame.f_code.co_flags & migrates else None


def _drives(caller: FrameType | None) -> bool:
    return caller is not None and package(caller) == "contextlib"
