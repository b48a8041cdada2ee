"""What stays of each group: non-maximum suppression, and a quota by what it leaves."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tokenprune.functional.greedy import Array
from tokenprune.functional.ranking import descending
from tokenprune.functional.vectors import inverse_norm, unit, widen

REFERENCE = 32  # tokens in all for which what is more alike than the mean counts as redundant
ROUNDING = 16  # ulps by which a cosine may be above 1
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
    x = widen(features)
    n, number = score.shape[1], int(group.max()) + 1
    picked = not_suppressed(x, score, group, threshold(x, total))
    sizes, counts = (members(group, mask, number) for mask in (torch.ones_like(picked), picked))
    quota = quotas(sizes, counts, total)
    order = descending(score)
    ranked = order.gather(1, (2 * group - picked.long()).gather(1, order).argsort(dim=1, stable=True))
    of = group.gather(1, ranked)
    place = torch.arange(n, device=of.device) - (sizes.cumsum(1) - sizes).gather(1, of)
    stays = place < quota.gather(1, of)
    stays &= stays.cumsum(1) < total
    return ranked[stays].view(len(ranked), total - 1)


def threshold(x: Tensor, total: int) -> Tensor:
    """(B,) cosine above which a token suppresses another: the mean of all pairs, times a factor by the budget.

    Args:
        x: (B, N, D).
        total: what the factor is in proportion to.
    """
    n = x.shape[1]
    scale = inverse_norm(x)
    whole = (scale[:, None] @ x)[:, 0].double().square().sum(1)  # the cosines of all with all
    pairs = whole - (scale * torch.linalg.vector_norm(x, dim=2)).double().sum(1)  # without those of each with itself
    above: Tensor = pairs / (n * (n - 1)) * (total / REFERENCE)
    return above.to(x.dtype)


def not_suppressed(x: Tensor, score: Tensor, group: Tensor, above: Tensor) -> Tensor:
    """Which tokens (B, N) no better one of their group is like, by falling score; the suppressed suppress none.

    Args:
        x: (B, N, D).
        score: (B, N).
        group: (B, N) long.
        above: (B,) the cosine that suppresses.
    """
    picked = torch.ones_like(group, dtype=torch.bool)
    order = descending(score)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    for row, limit in enumerate(above.tolist()):
        if limit > 1 + ROUNDING * torch.finfo(x.dtype).eps:  # no cosine is
            continue
        for same in torch.split(order[row], group[row].bincount().tolist()):
            vectors = unit(x[row, same])
            suppresses = (vectors @ vectors.T > limit).triu_(1)
            picked[row, same] = torch.from_numpy(survivors(suppresses.cpu().numpy())).to(picked.device)
    return picked


def survivors(suppresses: Array) -> Array:
    """Which (m,) of tokens from the best on live, by which later ones each suppresses if it does, (m, m) bool."""
    lives = np.ones(len(suppresses), dtype=bool)
    for token in np.flatnonzero(suppresses.any(1)):
        if lives[token]:
            lives &= ~suppresses[token]
    return lives


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
