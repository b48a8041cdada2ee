"""Hooks on the layers of a vision tower, by which patches leave while a call of its model runs.

Forward pre-hooks shorten what layers get; the model's own modules run unchanged. In other threads and contexts than the
call's own the hooks do nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
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
        behind: layers behind whose attention patches leave.
        owner: who called.
        forward: that is under way.
        number: of tokens that the layer was given that runs.
    """

    tower: RowTower
    model: Any
    begin: Callable[[Tensor], TowerForward]
    behind: Sequence[int] = ()
    owner: object = None
    forward: TowerForward | None = None
    number: int = 0

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
            for index in self.behind:
                layer = layers[index]
                within = self.tower.before_mlp(layer)
                stack.enter_context(within.register_forward_pre_hook(partial(self._after_attention, index)))
                stack.enter_context(self.tower.mlp_end(layer).register_forward_hook(self._after_mlp))
                # Before the hooks by which transformers collects what layers give.
                after = partial(self._after_layer, index)
                stack.enter_context(layer.register_forward_hook(after, prepend=True))
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
        if len(args) > 1:  # a mask that is given by its place
            names = list(inspect.signature(module.forward).parameters)
            rest.update(zip(names[1:], args[1:], strict=False))
        left, arguments = self.forward.enter(index, args[0] if args else rest.pop("hidden_states"), rest)
        return (left,), dict(arguments)

    def _after_attention(self, index: int, module: Any, args: tuple[Any, ...]) -> Any:
        """Forward pre-hook of the module that is given what the attention of a layer leaves."""
        if _ACTIVE.get() is not self or self.forward is None:
            return None
        self.number = args[0].shape[1]
        return (self.forward.attended(index, args[0]), *args[1:])

    def _after_mlp(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if _ACTIVE.get() is not self or self.forward is None:
            return None
        return self.forward.passed(output, self.number)

    def _after_layer(self, index: int, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if _ACTIVE.get() is not self or self.forward is None:
            return None
        if isinstance(output, Tensor):
            return self.forward.leave(index, output)
        return self.forward.leave(index, output[0]), *output[1:]

    def _end(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if _ACTIVE.get() is self:
            self.forward = None
