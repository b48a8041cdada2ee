"""Caches that are cut once they are filled: some tokens of the prompt leave the cache of a layer that has run."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.alive import Alive


def cut(storage: Any, held: Alive, stay: Tensor, *, in_place: bool) -> Alive:
    """Cut the cache of a layer.

    Args:
        storage: the layer's part of the cache, keys and values (B, G, n, d).
        held: the tokens that it holds.
        stay: (B, n) bool, or (B, G, n) if the key-value heads keep different ones.
        in_place: leave all tokens where they are, and hide them from what comes later: for the layer off which models
            read how long a prompt was.

    Returns:
        What it holds then.

    Raises:
        ModelError: if such a cache cannot be cut.
    """
    if stay.dim() == 3:
        check_heads(storage, stay.shape[1])
        held, stay = held.by_head(stay.shape[1]), rearrange(stay, "b g n -> (b g) n")
    if bool((stay | ~held.valid).all()):
        return held
    if in_place:
        return held.masked(stay)
    check_storage(storage)
    after, order = held.keep(stay, stay.new_zeros(len(stay), 0), repack=False)
    index = rearrange(order, "(b g) n -> b g n 1", g=held.copies).to(storage.keys.device)
    for name in ("keys", "values"):
        x = getattr(storage, name)
        setattr(storage, name, x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])))
    return after


def cut_to(storage: Any, held: Alive, alive: Alive, length: int, *, in_place: bool) -> Alive:
    """Cut the cache of a layer to what a later layer still sees.

    Args:
        storage: see ``cut``, as for ``held`` and ``in_place``.
        held: the tokens that it holds.
        alive: what the later layer sees.
        length: columns of the prompt.
        in_place: for the first layer.
    """
    alive = alive.to(held.slots.device)
    seen = held.valid.new_zeros(len(alive.slots), length + 1)
    own = alive.valid & ~(alive.visual & (alive.number < 0))  # appended tokens are in no earlier cache
    seen = seen.scatter(1, alive.slots.masked_fill(~own, length), True)[:, :length]
    stay = seen.repeat_interleave(held.copies, 0).gather(1, held.slots)
    return cut(storage, held, stay, in_place=in_place)


def check_storage(storage: Any) -> None:
    """Raise ModelError for caches that cannot become shorter."""
    if type(storage) is not DynamicLayer:
        raise ModelError(
            f"a pruner that cuts caches needs a dynamic cache whose layers see everything; {type(storage).__name__} "
            "is static, or has a sliding window"
        )


def check_heads(storage: Any, heads: int) -> None:
    """Raise ModelError if a selection has not a row for each key-value head."""
    if storage.keys.shape[1] != heads:
        raise ModelError(f"a selection by heads has {heads} of them; the cache has {storage.keys.shape[1]}")
