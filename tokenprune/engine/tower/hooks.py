"""Hooks on the layers of a vision tower, by which patches leave while a call of its model runs.

Forward pre-hooks shorten what layers get; the model's own modules run unchanged. In other threads and contexts than the
call's own the hooks do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tokenprune.engine.tower.forward import TowerForward
from tokenprune.towers.rows import RowTower

_ACTIVE: ContextVar[TowerHooks | None] = ContextVar("tokenprune_tower", default=None)


def active() -> TowerHooks | None:
    """The hooks that act in this context; None if none do."""
    return _ACTIVE.get()


@dataclass(eq=False)
class TowerHooks:
    """What shortens the forwards of a vision tower in one call of its model.

    Attributes:
        tower, model: whose forwards.
        begin: makes a forward of the pictures (I, 3, h, w) that it is given.
        owner: who called.
        forward: that is under way.
    """

    tower: RowTower
    model: Any
    begin: Callable[[Tensor], TowerForward]
    owner: object = None
    forward: TowerForward | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """The hooks are on the model in this ``with`` block, which lies within one function."""
        layers = self.tower.layers(self.model)
        with ExitStack() as stack:  # the hooks go however the call ends
            stack.callback(_ACTIVE.reset, _ACTIVE.set(self))
            door = self.tower.door(self.model)
            stack.enter_context(door.register_forward_pre_hook(self._start, with_kwargs=True))
            for index, layer in enumerate(layers):
                hook = partial(self._before, index)
                stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
            stack.enter_context(layers[-1].register_forward_hook(self._end))
            yield

    def _start(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Forward pre-hook of the module with which every forward begins.

        Torch leaves out the keyword arguments if another thread, whose hook this is, is removing it.
        """
        if _ACTIVE.get() is self and kwargs is not None:
            self.forward = self.begin(args[0] if args else kwargs["pixel_values"])

    def _before(self, index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Forward pre-hook of a layer."""
        if _ACTIVE.get() is not self or self.forward is None or kwargs is None:
            return None
        rest = dict(kwargs)
        hidden, more = (args[0], args[1:]) if args else (rest.pop("hidden_states"), ())
        left, arguments = self.forward.enter(index, hidden, rest)
        return (left, *more), dict(arguments)

    def _end(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if _ACTIVE.get() is self:
            self.forward = None
