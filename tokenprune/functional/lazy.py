"""Exact greedy selection by looking ahead among few candidates, for gains that only fall.

Greedy takes the token with the largest gain, then lowers the gains of the others, k times. Done one pick at a time that
is k passes over all N tokens, bound by memory and by launches. Here, a block of picks at a time:

1. Candidates are the tokens with the largest gains. The plain loop walks among them alone: a small matrix, on the host.
2. Gains only fall, so the largest gain outside the candidates bounds all of those: a pick whose own gain exceeds it is
   what the plain loop over all tokens would have picked. The walk stops before the first that does not.
3. All N gains are brought up to date for the block's picks at once, by matrix multiplication, all rows together.

The first pick of a block is always exact, so there is progress; lower indices win ties, as in the plain loop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CANDIDATES = 192, 768  # tokens among which the loop walks at first, and at most; more make longer blocks
NEVER = -float("inf")  # gain of what is picked, padding, or nothing but rounding
Array = NDArray[Any]


class Criterion(ABC):
    """What is maximised. It remembers what the picks so far imply, and serves one selection only."""

    @abstractmethod
    def among(self, candidates: Tensor) -> Tensor:
        """What ``lower`` needs to know of the candidates, (B, M) token indices: (B, M, M)."""

    @abstractmethod
    def lower(self, gain: Array, pick: int, matrix: Array, past: Array) -> Array:
        """One step of the plain loop among the candidates of one row.

        Args:
            gain: (M,) before the pick.
            pick: its position among the candidates.
            matrix: (M, M) from ``among``.
            past: (steps + 1, M) what earlier steps of this walk left here; the last row is for this step.

        Returns:
            (M,) gains after the pick.
        """

    @abstractmethod
    def step(self, gain: Tensor, pick: Tensor, at: Tensor) -> Tensor:
        """The gains (B, N) after one more pick of each row, without a wait for the device.

        Args:
            gain: (B, N) before it; ``NEVER`` at a pick that gains nothing.
            pick: (B, 1) token indices.
            at: (1,) how many picks there were before.
        """

    @abstractmethod
    def update(self, gain: Tensor, picks: Tensor, counts: list[int]) -> Tensor:
        """The gains (B, N) after the picks (B, S), token indices: ``counts`` of each row, then repetitions."""


@torch.no_grad()
def lazy_greedy(criterion: Criterion, gain: Tensor, floor: Tensor, k: int) -> Tensor:
    """The greedy picks, in order.

    Args:
        criterion: what is maximised.
        gain: (B, N) of a first pick; ``NEVER`` for what may not be picked.
        floor: (B, N) a gain that is not above it is rounding, and counts as none.
        k: number of picks in each row, tokens; not more than may be picked.

    Returns:
        (B, k) distinct token indices. Once nothing is left to gain in a row, its lowest indices that may be picked.
    """
    batch, n = gain.shape
    size = CANDIDATES[0]
    allowed = gain > NEVER
    rank = torch.full((batch, n), k, device=gain.device)  # which pick a token was; k: none so far
    done = [0] * batch
    while True:
        size = min(n, max(min(size, 2 * (k - min(done))), CANDIDATES[0]), CANDIDATES[1])
        gain = torch.where(gain > floor, gain, NEVER).masked_fill_(rank < k, NEVER)
        best = gain.sort(dim=1, descending=True, stable=True)
        candidates = best.indices[:, :size].sort(1).values
        rival = best.values[:, size] if n > size else gain.new_full((batch,), NEVER)
        local = gain.gather(1, candidates), floor.gather(1, candidates), criterion.among(candidates), rival
        rows = zip(*(x.cpu().numpy() for x in local), done, strict=True)
        walks = [_walk(criterion, g, f, m, r, k - start) for g, f, m, r, start in rows]
        picks, ranks = _padded(walks, done, k)
        picks = candidates.gather(1, picks.to(gain.device))
        rank.scatter_reduce_(1, picks, ranks.to(gain.device), "amin")
        done = [start + len(walk) if walk else k for start, walk in zip(done, walks, strict=True)]
        if min(done) == k:
            return rank.masked_fill_(~allowed, k + 1).argsort(dim=1, stable=True)[:, :k]
        counts = [len(walk) for walk in walks]
        gain = criterion.update(gain, picks, counts)
        size = math.isqrt(max(counts) * n)  # then looking at the candidates costs what bringing all up to date costs


def _walk(criterion: Criterion, gain: Array, floor: Array, matrix: Array, rival: float, limit: int) -> list[int]:
    """The plain loop among the candidates of one row, as far as it is exact: positions, at most ``limit`` of them."""
    past = np.empty((min(limit, len(gain)), len(gain)), gain.dtype)
    picks: list[int] = []
    for step in range(len(past)):
        pick = int(gain.argmax())
        if gain[pick] == NEVER or (picks and gain[pick] <= rival):
            break
        picks.append(pick)
        gain = criterion.lower(gain, pick, matrix, past[: step + 1])
        gain[gain <= floor] = NEVER
        gain[pick] = NEVER
    return picks


def _padded(walks: list[list[int]], done: list[int], k: int) -> tuple[Tensor, Tensor]:
    """Walks as one (B, S) tensor of positions, short ones repeating their end, and which pick of its row each is."""
    width = max(1, *map(len, walks))
    picks, ranks = torch.zeros(len(walks), width, dtype=torch.long), torch.full((len(walks), width), k)
    for row, (walk, start) in enumerate(zip(walks, done, strict=True)):
        picks[row] = torch.tensor(walk + (walk or [0])[-1:] * (width - len(walk)))
        ranks[row, : len(walk)] = torch.arange(start, start + len(walk))
    return picks, ranks
