"""The class that a model has while something is open on it: its real one, with entries that ask first."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

Enter = Callable[[Any, str], Callable[..., Any]]


class Open:
    """The first base of an open model's class."""

    openings: ClassVar[tuple[Any, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A new model is of the real class; without arguments torch makes replicas."""
        return real_class(cls)(*args, **kwargs) if args or kwargs else super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What the real class does when a class is derived from it is not wanted here."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are of the real class, and know nothing of what is open here."""
        made: Any = super().__reduce_ex__(protocol)
        _, (kind, *_), state, *rest = made
        return copyreg._reconstructor, (real_class(kind), object, None), state, *rest  # type: ignore[attr-defined]


def open_class(real: type, entries: Sequence[str], enter: Enter) -> Any:
    """A class made of a model's real one.

    Args:
        real: the class.
        entries: names of the methods that are entered; it may lack some.
        enter: see ``Entry``.
    """
    alike = {name: getattr(real, name) for name in ("__module__", "__qualname__", "__doc__")}
    called = {name: Entry(name, enter) for name in entries if hasattr(real, name)}
    return type(real.__name__, (Open, real), {**alike, **called, "openings": ()})


def open_class_of(kind: Any) -> Any:
    """The open class that a class is, or is derived from."""
    return next(base for base in kind.__mro__ if Open in base.__bases__)


def real_class(kind: Any) -> Any:
    """The class that a class of an open model was made of; itself for others."""
    return open_class_of(kind).__bases__[1] if issubclass(kind, Open) else kind


def change_class(model: Any, kind: type) -> None:
    """Give a model another class; torch would look for a submodule of that name."""
    object.__setattr__(model, "__class__", kind)


def own_method(model: Any, entry: str) -> Callable[..., Any]:
    """The model's own method."""
    own: Callable[..., Any] | None = vars(model).get(entry)
    found: Callable[..., Any] = getattr(real_class(type(model)), entry).__get__(model) if own is None else own
    return found


class Entry:
    """A method by which an open model is called.

    It comes before what the model itself may hold under that name: wrappers of the user's, of accelerate or of
    ``torch.compile``, which it then calls.

    Args:
        name: of the method.
        enter: makes of a model and that name what is called instead.
    """

    def __init__(self, name: str, enter: Enter) -> None:
        self.name, self.enter = name, enter
        self._last: tuple[Any, Any, Callable[..., Any]] | None = None

    @torch.compiler.disable(reason="the model is pruned; compile it without fullgraph")  # type: ignore[untyped-decorator, no-untyped-call]
    def __get__(self, model: Any, kind: Any = None) -> Any:
        if model is None:
            return getattr(real_class(kind), self.name)
        original, last = vars(model).get(self.name), self._last
        if last is not None and last[0] is model and last[1] is original:
            return last[2]
        if self.name == "forward":  # torch reads it itself, at each call
            self._last = model, original, self.enter(model, self.name)
            return self._last[2]
        return self.enter(model, self.name)

    def forget(self) -> None:
        """Let go of the model."""
        self._last = None

    def __set__(self, model: Any, value: Any) -> None:
        vars(model)[self.name] = value

    def __delete__(self, model: Any) -> None:
        if self.name not in vars(model):
            raise AttributeError(self.name)
        del vars(model)[self.name]
