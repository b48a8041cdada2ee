"""What stays of each group: non-maximum suppression, and a quota by what it leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenprune.functional.ranking import descending
from tokenprune.functional.vectors import take, unit, widen

REFERENCE = 32  # tokens in all for which what is more alike than the mean counts as redundant
CAP, PER = 5, 64  # at most 5 tokens of a group for each 64 in all


def best_of_groups(features: Tensor, score: Tensor, group: Tensor, total: int) -> Tensor:
    """The tokens that stay, group by group, in each first those that are not suppressed, by falling score.

    Args:
        features: (B, N, D).
        score: (B, N).
        group: (B, N) long, from 0.
        total: one more than stay, at most N.

    Returns:
        (B, total - 1) long.
    """
    x = unit(widen(features))
    similarity = x @ x.mT
    n, number = score.shape[1], int(group.max()) + 1
    picked = not_suppressed(similarity, score, group, threshold(similarity, total))
    sizes, counts = (members(group, mask, number) for mask in (torch.ones_like(picked), picked))
    quota = quotas(sizes, counts, total)
    order = descending(score)
    ranked = order.gather(1, (2 * group - picked.long()).gather(1, order).argsort(dim=1, stable=True))
    of = group.gather(1, ranked)
    place = torch.arange(n, device=of.device) - (sizes.cumsum(1) - sizes).gather(1, of)
    stays = place < quota.gather(1, of)
    stays &= stays.cumsum(1) < total
    return ranked[stays].view(len(ranked), total - 1)


def threshold(similarity: Tensor, total: int) -> Tensor:
    """(B, 1) similarity above which a token suppresses another: the mean of all pairs, times a factor by the budget."""
    n = similarity.shape[1]
    above = similarity.triu(1).sum((1, 2)) / (n * (n - 1) / 2)
    return above[:, None] * (total / REFERENCE)


def not_suppressed(similarity: Tensor, score: Tensor, group: Tensor, above: Tensor) -> Tensor:
    """Which tokens (B, N) no better one of their group is like, by falling score; the suppressed suppress none.

    Args:
        similarity: (B, N, N).
        score: (B, N).
        group: (B, N) long.
        above: (B, 1) the similarity that suppresses.
    """
    alive = torch.ones_like(group, dtype=torch.bool)
    picked = torch.zeros_like(alive)
    for token in torch.split(descending(score), 1, dim=1):
        lives = alive.gather(1, token)
        picked.scatter_(1, token, lives)
        alive &= ~(lives & (group == group.gather(1, token)) & (take(similarity, token)[:, 0] > above))
    return picked


def members(group: Tensor, mask: Tensor, number: int) -> Tensor:
    """How many tokens (B, number) of each group a mask (B, N) has."""
    return torch.zeros(len(group), number, dtype=torch.long, device=group.device).scatter_add(1, group, mask.long())


def quotas(sizes: Tensor, counts: Tensor, total: int) -> Tensor:
    """How many tokens of each group stay: one, and by its share of what is not suppressed; ``total`` - 1 in all.

    Args:
        sizes: (B, G) tokens of each group.
        counts: (B, G) those that are not suppressed.
        total: one more than stay, at most the tokens of all groups.

    Returns:
        (B, G) long.
    """
    least = sizes.clamp(max=1)
    most = counts.clamp(max=CAP * math.ceil(total / PER))
    while bool((short := most.sum(1, keepdim=True) < total).any()):
        most = torch.where(short, torch.minimum(most + 1, sizes), most)
    others = (total - least.sum(1, keepdim=True) - 1).clamp(min=0)
    ends = ((counts / counts.sum(1, keepdim=True)).cumsum(1) * others).round().long()
    quota = torch.minimum(ends.diff(dim=1, prepend=torch.zeros_like(others)) + least, most)
    first = descending(counts)
    room = (most - quota).gather(1, first)
    missing = total - 1 - quota.sum(1, keepdim=True)
    filled = torch.minimum((missing - room.cumsum(1) + room).clamp(min=0), room)
    return quota.scatter_add(1, first, filled)
