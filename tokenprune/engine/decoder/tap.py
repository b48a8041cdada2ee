"""See the queries and keys of one attention module while any kernel computes its output.

Attention modules of transformers 5 look up ``config._attn_implementation`` in a registry and hand that function their
queries and keys after rotation and normalisation. A tapped module gets a copy of its config that names a function which
shows both to whoever listens and then calls the kernel. All other modules keep theirs.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.precision import exact
from tokenprune.functional.vectors import of_rows, widen

PREFIX = "tokenprune_"


@dataclass(frozen=True, eq=False)
class Attended:
    """What an attention module hands to its kernel.

    Attributes:
        query: (B, H, L, d), after rotation.
        key: (B, H', L or more, d), likewise; H' divides H. Of a static cache it holds slots that are not filled yet.
        scaling: of the dot products.
        mask: (B or 1, 1, L, columns), bool or additive; None if attention is causal and nothing is padded, or if the
            kernel takes no such mask.
        softcap: c of c * tanh(x / c), or None.
        window: each query sees so many keys, itself included; None for all before it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None
    softcap: float | None
    window: int | None

    def to(self, device: torch.device) -> Attended:
        """Queries, keys and mask on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return dataclasses.replace(self, query=self.query.to(device), key=self.key.to(device), mask=mask)

    def probabilities(self, rows: Tensor, valid: Tensor, batch: Tensor) -> Tensor:
        """Attention probabilities of some queries, in float32 at least, as the eager implementation has them.

        Args:
            rows: (G, Q) long, which queries.
            valid: (G, L) bool, which keys are no padding.
            batch: (G,) long, the rows of the batch that these are of, ascending.

        Returns:
            (G, H, Q, L).
        """
        length, size = valid.shape[1], self.query.shape[-1]
        index = rows[:, None, :, None].expand(-1, self.query.shape[1], -1, size)
        query = widen(of_rows(self.query, batch).gather(2, index))
        key = widen(of_rows(self.key[:, :, :length], batch))
        grouped = query.view(len(batch), key.shape[1], -1, *rows.shape[1:], size)  # each key serves several heads
        with exact(key.device):
            scores = torch.einsum("ghnqd,ghld->ghnql", grouped, key).flatten(1, 2) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        allowed = self._allowed(rows, length, batch) & valid[:, None]
        if self.mask is not None and self.mask.is_floating_point():  # which may favour some keys
            added = of_rows(self.mask.expand(len(self.query), -1, -1, -1)[:, 0, :, :length], batch)
            scores = scores + widen(added.gather(1, rows[..., None].expand(-1, -1, length)))[:, None]
        return scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)

    def _allowed(self, rows: Tensor, length: int, batch: Tensor) -> Tensor:
        """Which keys each query may see, (G, Q, L) bool."""
        if self.mask is not None and self.mask.dim() == 4:
            mask = of_rows(self.mask.expand(len(self.query), -1, -1, -1)[:, 0, :, :length], batch)
            mask = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            return mask.gather(1, rows[..., None].expand(-1, -1, length))
        distance = rows[..., None] - torch.arange(length, device=rows.device)
        return (distance >= 0) & (distance < (self.window or length + 1))


Listener = Callable[[Attended], "Asking | None"]
_LOCK = threading.Lock()


class Asking(Protocol):
    """Some of the tokens that a module computes, whose queries alone the kernel should get."""

    def gather_heads(self, x: Tensor) -> Tensor:
        """Take the asking tokens out of all, head by head: (B, H, N, d) to (B, H, n, d)."""

    def scatter(self, x: Tensor) -> Tensor:
        """Put the asking tokens back among all, (B, n, D) to (B, N, D); the others are zero."""


_TAPPED: WeakKeyDictionary[nn.Module, tuple[Any, list[Listener]]] = WeakKeyDictionary()  # their config, who listens


@contextmanager
def tapped(attention: nn.Module, listener: Listener) -> Iterator[None]:
    """Tell a listener what the module hands to its kernel, as often as it runs in the block, in any thread.

    It may answer with tokens whose queries alone the kernel should get; then the output is zero for the others.
    """
    with _LOCK:
        config, listeners = _TAPPED.setdefault(attention, (attention.config, []))
        listeners.append(listener)
        if attention.config is config:
            attention.config = _renamed(config)
    try:
        yield
    finally:
        with _LOCK:
            listeners.remove(listener)
            if not listeners:
                attention.config = _TAPPED.pop(attention)[0]


def attended(
    attention: nn.Module, hidden: Tensor, position_embeddings: Any, mask: Tensor | None, row: Tensor | None = None
) -> Attended:
    """What the module would hand to its kernel; it stops there, and no cache sees anything.

    Args:
        attention: the module.
        hidden: (B, L, D), after the layer's norm.
        position_embeddings: cosines and sines of the L tokens.
        mask: as the layer would get it.
        row: (B,) long, the only query that will be read; None if all will be. It saves the projection of the others.
    """
    seen: list[Attended] = []

    def stop(what: Attended) -> None:
        if threading.get_ident() == caller:
            seen.append(what)
            raise _StopError

    caller = threading.get_ident()
    one = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    with ExitStack() as stack:
        stack.enter_context(tapped(attention, stop))
        stack.enter_context(suppress(_StopError))
        for name, needed in {"q_proj": row, "v_proj": one}.items():  # values are not read at all
            if needed is not None and hasattr(attention, name):
                stack.enter_context(_projecting(getattr(attention, name), needed, caller))
        # The cache has no default in some attention modules.
        options: dict[str, Any] = {"attention_mask": mask, CACHE: None}
        attention(hidden_states=hidden, position_embeddings=position_embeddings, **options)
    return seen[0]


@contextmanager
def _projecting(projection: nn.Module, row: Tensor, caller: int) -> Iterator[None]:
    """Project one token of each row of the batch, and repeat it, in the calling thread."""
    lengths: list[int] = []

    def take(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        if threading.get_ident() != caller:
            return None
        hidden: Tensor = args[0]
        lengths.append(hidden.shape[1])
        return hidden[torch.arange(len(row), device=row.device), row][:, None]

    def repeat(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.expand(-1, lengths.pop(), -1) if threading.get_ident() == caller else output

    handles = projection.register_forward_pre_hook(take), projection.register_forward_hook(repeat)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _StopError(Exception):
    pass


def _renamed(config: Any) -> Any:
    """A copy of a config that names our function instead of the kernel."""
    kernel = config._attn_implementation or "eager"
    if PREFIX + kernel not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(PREFIX + kernel, _showing(kernel))
    renamed = copy.copy(config)
    # Its public setter would write through to configs that the copy shares with the original.
    object.__setattr__(renamed, "_attn_implementation_internal", PREFIX + kernel)
    return renamed


def _showing(kernel: str) -> Callable[..., Any]:
    """The attention function ``kernel``, showing its queries and keys before it runs."""

    def show(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        config, listeners = _TAPPED.get(module) or (module.config, [])
        what = Attended(
            query, key, options["scaling"], mask, options.get("softcap"), options.get("sliding_window") or None
        )
        asking = next((answer for listener in tuple(listeners) if (answer := listener(what)) is not None), None)
        eager = getattr(sys.modules[type(module).forward.__module__], "eager_attention_forward", None)
        run = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)
        if asking is None:
            return run(_Untapped(module, config), query, key, value, mask, **options)
        output, weights = run(_Untapped(module, config), asking.gather_heads(query), key, value, mask, **options)
        return asking.scatter(output.flatten(2)).view(*output.shape[:1], -1, *output.shape[2:]), weights

    return show


class _Untapped:
    """A module with its own config: some kernels read their name from it."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self.module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
