"""Ranks of scores, where lower indices win ties on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def descending(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Indices by falling score, what is not allowed last.

    Args:
        scores: (..., N).
        allowed: (..., N) bool; all if None.

    Returns:
        (..., N) long.
    """
    ranked = scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)
    return ranked.argsort(dim=-1, descending=True, stable=True)


def leading(scores: Tensor, k: int) -> Tensor:
    """The first k of ``descending``; the others are sorted, too, only if scores that matter are equal.

    Args:
        scores: (..., N).
        k: how many, at most N.

    Returns:
        (..., k) long.
    """
    if k >= scores.shape[-1]:
        return descending(scores)
    values, index = scores.detach().topk(k + 1, dim=-1)
    if bool((values[..., 1:] == values[..., :-1]).any()):
        return descending(scores)[..., :k]
    return index[..., :k]


def highest(scores: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
    """Which entries have the k highest scores, or all that are allowed if these are fewer.

    Args:
        scores: (..., N).
        k: how many.
        allowed: (..., N) bool; all if None.

    Returns:
        (..., N) bool.
    """
    ranked = scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)
    best = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, _any_order(ranked, k), True)
    return best if allowed is None else best & allowed


def _any_order(scores: Tensor, k: int) -> Tensor:
    """The indices of ``leading``, in any order."""
    if k >= scores.shape[-1]:
        return descending(scores)
    values, index = scores.detach().topk(k + 1, dim=-1)
    if k and bool((values[..., k - 1] == values[..., k]).any()):
        return descending(scores)[..., :k]
    return index[..., :k]


def first_largest(scores: Tensor) -> Tensor:
    """The index of the largest score, the lowest index of several.

    Args:
        scores: (..., N) without NaN.

    Returns:
        (..., 1) long.
    """
    index = torch.arange(scores.shape[-1], device=scores.device)
    best = scores == scores.amax(-1, keepdim=True)
    return torch.where(best, index, scores.shape[-1]).amin(-1, keepdim=True)


def rank_within(scores: Tensor, group: Tensor) -> Tensor:
    """How many entries of the same group come before each, by falling score.

    Args:
        scores: (B, N).
        group: (N,) long, from 0.

    Returns:
        (B, N) long.
    """
    order = descending(scores)
    grouped = order.gather(1, group[order].argsort(dim=1, stable=True))
    sizes = group.bincount()
    place = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group[grouped]]
    return torch.zeros_like(order).scatter(1, grouped, place)
