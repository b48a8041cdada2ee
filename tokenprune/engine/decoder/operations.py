"""Run a layer's attention or MLP for some of the tokens; what is skipped is not computed, and its residual passes by.

The rows that take part are gathered at the door of ``self_attn`` or ``mlp``, and what comes out is scattered into
zeros, so that the decoder layer's own addition leaves the others as they were. Where other tokens ask than give keys
and values, the projections inside are gathered likewise, and the kernel gets queries of the ones, keys of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.plan import Operation
from tokenprune.engine.decoder.alive import Alive
from tokenprune.functional.vectors import take

Arguments = dict[str, Any]
# Projections of an attention module, and whose they are.
PROJECTIONS = {"q_proj": "receivers", "k_proj": "sources", "v_proj": "sources", "o_proj": "receivers"}


@dataclass(frozen=True, eq=False)
class Rows:
    """Some tokens of each row.

    Attributes:
        alive: the tokens.
        index: (B, n) long, where they are among the tokens that they were taken from; padding has some index.
        total: N, tokens that they were taken from.
    """

    alive: Alive
    index: Tensor
    total: int

    @classmethod
    def of(cls, alive: Alive, stay: Tensor, *, repack: bool = False) -> Rows:
        """Rows of the tokens that ``stay``, (B, N) bool; ``repack`` closes the gaps in the position ids."""
        none = stay.new_zeros(len(stay), 0)
        chosen, index = alive.keep(stay, none, repack=repack)
        return cls(chosen, index, stay.shape[1])

    def gather(self, x: Tensor) -> Tensor:
        """Take these tokens out of all: (B, N, D) to (B, n, D)."""
        return take(x, self.index)

    def gather_heads(self, x: Tensor) -> Tensor:
        """Take these tokens out of all, head by head: (B, H, N, d) to (B, H, n, d)."""
        return x.gather(2, self.index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def scatter(self, x: Tensor) -> Tensor:
        """Put these tokens back among all, (B, n, D) to (B, N, D); the others are zero."""
        seat = self.index.masked_fill(~self.alive.valid, self.total)
        full = x.new_zeros(len(x), self.total + 1, x.shape[-1])
        return full.scatter(1, seat[..., None].expand_as(x), x)[:, : self.total]


@dataclass(frozen=True, eq=False)
class LayerRows:
    """Who takes part in what of one layer, where not all do.

    Attributes:
        attending: sources and receivers; None if that is everybody.
        receivers, sources: among those who attend; None if all of them are.
        mlp: None if everybody.
    """

    attending: Rows | None
    receivers: Rows | None
    sources: Rows | None
    mlp: Rows | None

    @classmethod
    def of(cls, alive: Alive, group: Tensor, active: Tensor) -> LayerRows:
        """The rows of one layer.

        Args:
            alive: tokens at its input.
            group: (B, n) long, of each visual token.
            active: (3, groups) bool over ``Operation``.
        """

        def on(operation: Operation) -> Tensor:
            return (~alive.visual | active[operation].to(group.device)[group]) & alive.valid

        def rows(base: Alive, stay: Tensor) -> Rows | None:
            return None if bool((stay == base.valid).all()) else Rows.of(base, stay)

        sources, receivers = on(Operation.ATTENTION_SOURCE), on(Operation.ATTENTION_RECEIVER)
        attending = rows(alive, sources | receivers)
        within = alive if attending is None else attending.alive
        pick: Callable[[Tensor], Tensor] = lambda x: x if attending is None else x.gather(1, attending.index)  # noqa: E731
        return cls(
            attending,
            rows(within, pick(receivers) & within.valid),
            rows(within, pick(sources) & within.valid),
            rows(alive, on(Operation.MLP)),
        )

    @property
    def split(self) -> bool:
        """Whether other tokens ask than give keys and values."""
        return self.receivers is not None or self.sources is not None

    def held(self, alive: Alive) -> Alive:
        """Tokens that the layer caches; ``alive`` are the tokens at its input."""
        for rows in (self.sources, self.attending):
            if rows is not None:
                return rows.alive
        return alive

    def asking(self, alive: Alive) -> Alive:
        """Tokens whose queries the kernel gets; ``alive`` are the tokens at the layer's input."""
        for rows in (self.receivers, self.attending):
            if rows is not None:
                return rows.alive
        return alive


@dataclass(frozen=True, eq=False)
class Running:
    """A layer that runs for some of the tokens, while it does.

    Attributes:
        alive: tokens at its input.
        rows: who takes part in what.
        fit: from some of the tokens to the layer's arguments that are aligned with them.
        mask: of the whole prompt.
        kind: of the masks that attention takes.
        storage: the layer's part of the cache, empty; None if there is no cache, or if it is not there yet and will
            hold what it is given.
    """

    alive: Alive
    rows: LayerRows
    fit: Callable[[Alive], Arguments]
    mask: Tensor | None
    kind: str
    storage: Any

    def enter_attention(self, arguments: Arguments) -> Arguments:
        """Arguments of ``self_attn`` for those who attend."""
        hidden, rows = arguments["hidden_states"], self.rows
        fitting = self.fit(self.alive if rows.attending is None else rows.attending.alive)
        names = ("attention_mask", "position_embeddings", "position_ids")
        arguments = {**arguments, **{name: fitting[name] for name in names if name in arguments}}
        if rows.attending is not None:
            arguments["hidden_states"] = rows.attending.gather(hidden)
        if rows.split:
            asking, held = rows.asking(self.alive), rows.held(self.alive)
            keys = held.slots.shape[1]
            columns = keys if self.storage is None else self.storage.get_mask_sizes(keys)[0]
            arguments["attention_mask"] = split_mask(self.mask, asking, held, columns, self.kind, hidden.dtype)
            arguments[CACHE] = SourceCache(arguments.get(CACHE), rows.sources)
        return arguments


class SourceCache:
    """Stands for a cache in one call of an attention module, and passes on the keys and values of sources alone.

    Args:
        cache: the real one, or None.
        sources: among the tokens that the module computes; None for all.
    """

    def __init__(self, cache: Any, sources: Rows | None) -> None:
        self.cache, self.sources = cache, sources

    def update(self, key: Tensor, value: Tensor, layer: int, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Cache the sources' part of keys and values (B, H, n, d), and return all that the layer holds."""
        if self.sources is not None:
            key, value = self.sources.gather_heads(key), self.sources.gather_heads(value)
        if self.cache is None:
            return key, value
        updated: tuple[Tensor, Tensor] = self.cache.update(key, value, layer, *rest, **options)
        return updated

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def split_mask(given: Tensor | None, asking: Alive, held: Alive, columns: int, kind: str, dtype: torch.dtype) -> Tensor:
    """The mask of some tokens' queries over others' keys.

    Args:
        given: the prompt's own, (B or 1, 1, L, columns), or None if it is causal and nothing is padded.
        asking: the queries.
        held: the keys.
        columns: keys that the kernel gets; a static cache has slots that are not filled yet.
        kind: ``bool`` or ``additive``.
        dtype: of an additive mask.

    Returns:
        (B, 1, queries, columns).
    """
    if given is not None and given.dim() == 4:
        given = given.to(asking.slots.device).expand(len(asking.slots), -1, -1, -1)
        rows = given.gather(2, asking.slots[:, None, :, None].expand(-1, 1, -1, given.shape[3]))
        allowed = rows.gather(3, held.slots[:, None, None].expand(-1, 1, rows.shape[2], -1))
        allowed = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
    else:
        allowed = (held.slots[:, None] <= asking.slots[..., None])[:, None]
    spare = columns - held.slots.shape[1]
    allowed = torch.nn.functional.pad(allowed & held.valid[:, None, None], (0, spare), value=False)
    if kind == "bool":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
