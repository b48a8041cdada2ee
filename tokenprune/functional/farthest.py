"""Farthest-point (max-min) greedy selection by cosine distance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.functional.greedy import NEVER, Array, Criterion, Loop, lazy_greedy
from tokenprune.functional.kernels import KernelMatrix
from tokenprune.functional.vectors import widen

ROUNDING = 16  # ulps of 1; tokens that are closer than that coincide
BLOCK = 256  # tokens whose distances to all others are computed at once


def max_min(features: Tensor, k: int, valid: Tensor | None = None, loop: Loop = lazy_greedy) -> Tensor:
    """The set that greedily maximises the smallest cosine distance between its members.

    The first pick is the token whose nearest neighbour is farthest; each further one is the token farthest from the
    picks, that is, from the nearest of them.

    Args:
        features: (B, N, D).
        k: size of the set, tokens; at most the valid tokens of any row.
        valid: (B, N) bool, False for what may not be picked and is nobody's neighbour.
        loop: how the picks after the first are found.

    Returns:
        (B, k) distinct token indices in the order of the picks; once all others coincide with picks, the lowest
        indices. Only the picks' rows of the distance matrix are kept, so memory is O(N D) a row.
    """
    cosines = KernelMatrix.of(widen(features), "cosine")
    allowed = features.new_ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
    with exact(features.device):  # for who calls this without a pruner
        first = _loneliest(cosines, allowed)
        if k == 1:
            return first
        criterion = _Nearest(cosines)
        gain = _distance(cosines.rows(first))[:, 0].masked_fill_(~allowed, NEVER).scatter_(1, first, NEVER)
        floor = torch.full_like(gain, ROUNDING * torch.finfo(gain.dtype).eps)
        return torch.cat([first, loop(criterion, gain, floor, k - 1)], dim=1)


def _distance(cosine: Tensor) -> Tensor:
    """Cosines to distances, in place."""
    return cosine.neg_().add_(1)


def _loneliest(cosines: KernelMatrix, allowed: Tensor) -> Tensor:
    """The token (B, 1) with the largest distance to its nearest neighbour; the lowest index wins ties.

    Distances to some of the others bound that to the nearest from above. So the exact distance is computed for a block
    of tokens with the largest bounds at a time, which tightens the bounds of all, until no bound reaches the best.
    """
    n = allowed.shape[1]
    bound = torch.full_like(cosines.quality, torch.inf).masked_fill_(~allowed, NEVER)
    exact = ~allowed
    spread = torch.arange(0, n, -(-n // BLOCK), device=allowed.device)
    block = spread.expand(len(allowed), -1)
    while True:
        distance = _distance(cosines.rows(block))
        distance.scatter_(2, block[:, :, None], torch.inf)
        own = distance.masked_fill(~allowed[:, None], torch.inf).amin(2).minimum(bound.gather(1, block))
        others = distance.masked_fill_(~allowed.gather(1, block)[:, :, None], torch.inf).amin(1)
        bound = bound.scatter(1, block, own).minimum(others)
        exact = exact.scatter(1, block, True)
        known = bound.masked_fill(~exact, NEVER)
        rivals = bound.masked_fill(exact, NEVER)
        count = int(((rivals >= known.amax(1, keepdim=True)) & ~exact).sum(1).max())
        if not count:
            return known.argmax(1, keepdim=True)
        block = rivals.topk(min(BLOCK, count), dim=1).indices


class _Nearest(Criterion):
    def __init__(self, cosines: KernelMatrix) -> None:
        self.cosines = cosines

    def among(self, candidates: Tensor) -> Tensor:
        return _distance(self.cosines.square(candidates))

    def lower(self, gain: Array, pick: int, matrix: Array, past: Array) -> Array:
        lowered: Array = np.minimum(gain, matrix[pick])
        return lowered

    def step(self, gain: Tensor, pick: Tensor, at: Tensor) -> Tensor:
        return gain.minimum(_distance(self.cosines.rows(pick))[:, 0])

    def update(self, gain: Tensor, picks: Tensor, counts: list[int]) -> Tensor:
        return gain.minimum(_distance(self.cosines.rows(picks)).amin(1))  # repeated picks do no harm
