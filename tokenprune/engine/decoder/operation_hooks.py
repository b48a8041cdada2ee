"""The hooks of a decoder layer that runs its attention or MLP for some of the tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenprune.engine.decoder.operations import PROJECTIONS, Rows, Running

Arguments = dict[str, Any]


def operation_hooks(layer: Any, running: Callable[[], Running | None]) -> list[RemovableHandle]:
    """Put hooks on a layer.

    Args:
        layer: with ``self_attn`` and ``mlp``.
        running: what the layer does, if it is this thread's and in the prefill; else None.
    """

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments | None = None) -> Any:
        now = running()
        if now is None or kwargs is None:
            return None
        named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        return (), now.enter_attention(named)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        now = running()
        rows = now.rows.attending if now is not None else None
        return output if rows is None else (rows.scatter(output[0]), *output[1:])

    attention = layer.self_attn
    handles = [attention.register_forward_pre_hook(enter, with_kwargs=True), attention.register_forward_hook(leave)]
    for name, whose in PROJECTIONS.items():
        if hasattr(attention, name):  # else all tokens are projected, which is not wrong
            handles += on_rows(getattr(attention, name), functools.partial(_rows, running, whose))
    return handles + on_rows(layer.mlp, functools.partial(_rows, running, "mlp"))


def _rows(running: Callable[[], Running | None], whose: str) -> Rows | None:
    now = running()
    rows: Rows | None = getattr(now.rows, whose) if now is not None else None
    return rows


def on_rows(module: nn.Module, rows: Callable[[], Rows | None]) -> list[RemovableHandle]:
    """Put hooks on a module that make it compute some of the tokens; its output is zero for the others.

    Args:
        module: takes hidden states (B, N, D) first.
        rows: which tokens, whenever it runs; None for all.
    """

    def gather(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        some = rows()
        return None if some is None else some.gather(args[0])

    def scatter(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        some = rows()
        if some is None:
            return output
        return some.scatter(output) if isinstance(output, Tensor) else (some.scatter(output[0]), *output[1:])

    return [module.register_forward_pre_hook(gather), module.register_forward_hook(scatter)]
