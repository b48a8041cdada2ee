"""Few pivots, and the tokens that are least similar to each."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.functional.vectors import unit, widen


def largest(keys: Tensor, number: int, valid: Tensor) -> Tensor:
    """Indices of the vectors of largest L1 norm.

    Args:
        keys: (B, N, C).
        number: how many; at most N.
        valid: (B, N) bool, False for what is taken last.

    Returns:
        (B, number) long indices, ascending; lower indices win ties.
    """
    norm = widen(keys).abs().sum(-1).masked_fill(~valid, -torch.inf)
    return norm.argsort(dim=1, descending=True, stable=True)[:, :number].sort(1).values


def least_similar(features: Tensor, pivots: Tensor, present: Tensor, pool: Tensor, number: int) -> Tensor:
    """Pivots, one after another, take those left in the pool whose cosine to them is lowest.

    All take as many; if that does not divide, the first ones take one more.

    Args:
        features: (B, N, D).
        pivots: (B, P, D), in the order in which they choose.
        present: (B, P) bool, False for pivots that do not choose; at least one of a row does.
        pool: (B, N) bool, False for tokens that nobody may take.
        number: how many tokens are taken from each row; at most those in its pool.

    Returns:
        (B, N) bool, what is taken; lower indices win ties.
    """
    rank = present.long().cumsum(1) - 1
    choosing = present.sum(1, keepdim=True)
    share = (number // choosing + (rank < number % choosing)) * present
    cosine = unit(widen(features)) @ unit(widen(pivots)).mT
    left = pool
    for similarity, own in zip(cosine.unbind(2), share.unbind(1), strict=True):
        order = similarity.masked_fill(~left, torch.inf).argsort(dim=1, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < own[:, None]
        left = left & ~torch.zeros_like(left).scatter(1, order, first)
    return pool & ~left
