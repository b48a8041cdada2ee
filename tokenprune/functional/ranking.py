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


def leading(scores: Tensor, k: int, ordered: bool = True) -> Tensor:
    """The first k of ``descending``; all are sorted only in rows where scores are equal and that matters.

    Args:
        scores: (..., N).
        k: how many, at most N.
        ordered: whether their order matters.

    Returns:
        (..., k) long.
    """
    if k >= scores.shape[-1]:
        return descending(scores)
    values, index = scores.detach().topk(k + 1, dim=-1)
    equal = (values[..., 1:] == values[..., :-1])[..., 0 if ordered else max(0, k - 1) :].any(-1)
    best = index[..., :k]
    if bool(equal.any()):
        best[equal] = descending(scores[equal])[..., :k]
    return best


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
    best = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, leading(ranked, k, ordered=False), True)
    return best if allowed is None else best & allowed


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
