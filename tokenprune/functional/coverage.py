"""Greedy coverage: tokens that together cover as much as possible, each thing being covered by the best of them.

A pick changes the gains only through the things that it covers better than all picks before it, which after a few
picks are few. On a CPU a row's gains are brought up to date for these things alone, a block at a time that stays in the
cache. That adds rounding, of which a bound is kept: tokens whose gains are within it of the largest are compared by
gains that are computed afresh. On a GPU all rows go one pick at a time over the whole matrix (not measured there).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.functional.greedy import Array
from tokenprune.functional.ranking import first_largest

BLOCK = 32  # things at a time; their covers, summed up in their own precision, fit the cache
FALL = 8  # times that the largest gain falls until gains are computed afresh, lest old rounding outweighs them


@torch.no_grad()
def max_coverage(
    cover: Tensor, k: int, allowed: Tensor | None = None, factor: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """The set that greedily maximises sum_i max(0, max over its members j of cover_ij).

    The gain of a token is sum_i max(0, cover_ij - best_i), where best_i is 0 or the largest cover by what was picked.
    The picks for a smaller k are the first ones of those for a larger k.

    Args:
        cover: (B, M, N), how well each of N tokens covers each of M things; what is below 0 never counts.
        k: size of the set, tokens; at most what is allowed in any row.
        allowed: (B, N) bool, False for what may not be picked; all if None.
        factor: (B, N) at least 0, of the gain of each token; 1 if None.
        bonus: (B, N) added to the gain of each token; 0 if None.

    Returns:
        (B, k) distinct token indices in the order of the picks; the lowest of equally good ones. Time is at most
        O(k M N) a row; on a CPU O(M N) for each time that the things are covered better by a pick, on average.
    """
    size = cover.shape[0], cover.shape[2]
    factor = cover.new_ones(size) if factor is None else factor
    bonus = cover.new_zeros(size) if bonus is None else bonus
    free = cover.new_ones(size, dtype=torch.bool) if allowed is None else allowed
    with exact(cover.device):
        if cover.device.type != "cpu":
            return _stepwise(cover, k, free, factor, bonus)
        given = (x.detach().numpy() for x in (cover.contiguous(), free, factor.double(), bonus.double()))
        return torch.tensor([_Row(*row).picks(k) for row in zip(*given, strict=True)])


def _stepwise(cover: Tensor, k: int, free: Tensor, factor: Tensor, bonus: Tensor) -> Tensor:
    """The plain loop, all rows together, without a wait for the device."""
    best, order = cover.new_zeros(*cover.shape[:2], 1), []
    for _ in range(k):
        gain = (cover - best).clamp_(min=0).sum(1) * factor + bonus
        pick = first_largest(gain.masked_fill(~free, -torch.inf))
        best = best.maximum(cover.gather(2, pick[:, None].expand(-1, cover.shape[1], -1)))
        free = free.scatter(1, pick, False)
        order.append(pick)
    return torch.cat(order, 1)


class _Row:
    """One row's picks so far, and the gains of its tokens, in NumPy, whose calls cost least.

    Attributes:
        cover: (M, N).
        best: (M,) the largest cover of each thing by a pick.
        gain: (N,) float64, which rounding may have moved by ``error``.
        taken: (N,) -inf for what may not be picked, else 0.
    """

    def __init__(self, cover: Array, free: Array, factor: Array, bonus: Array) -> None:
        self.cover, self.factor, self.bonus = cover, factor, bonus
        self.taken = np.where(free, 0, -np.inf)
        self.best = np.zeros_like(cover[:, 0])
        self.block = np.empty_like(cover[:BLOCK])
        self._afresh()

    def picks(self, k: int) -> list[int]:
        """The next k tokens."""
        found: list[int] = []
        while len(found) < k:
            pick = self._next()
            found.append(pick)
            self.taken[pick] = -np.inf
            if len(found) < k:
                self._count(pick)
        return found

    def _afresh(self) -> None:
        """Gains of all tokens by what is covered now."""
        self.gain = np.zeros_like(self.factor)
        for start in range(0, len(self.cover), BLOCK):
            part = self.cover[start : start + BLOCK]
            part = np.subtract(part, self.best[start : start + BLOCK, None], out=self.block[: len(part)])
            self.gain += np.maximum(part, 0, out=part).sum(0)
        self.largest = self.gain.max()
        self.error = BLOCK * np.finfo(self.cover.dtype).eps * self.largest * self.factor

    def _count(self, pick: int) -> None:
        """Count what a pick covers better: of a gain max(0, cover - best) goes what lies between old and new best."""
        rows = np.flatnonzero(self.cover[:, pick] > self.best)
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            part, new = self.cover.take(some, 0, out=self.block[: len(some)], mode="clip"), self.cover[some, pick]
            np.minimum(part, new[:, None], out=part)
            part -= self.best[some, None]
            self.gain -= np.maximum(part, 0, out=part).sum(0)
            self.best[some] = new
        if self.gain.max() * FALL < self.largest:
            self._afresh()

    def _next(self) -> int:
        """The token with the largest gain, the lowest index of several."""
        value = self.gain * self.factor
        value += self.bonus
        value += self.taken
        least = (value - self.error).max()
        value += self.error
        near = np.flatnonzero(value >= least)
        if len(near) == 1:
            return int(near[0])
        gain = np.maximum(self.cover[:, near] - self.best[:, None], 0).sum(0, dtype=float)
        return int(near[(gain * self.factor[near] + self.bonus[near] + self.taken[near]).argmax()])
