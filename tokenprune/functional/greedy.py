"""Exact greedy selection, for gains that only fall.

Greedy takes the token with the largest gain, then lowers the gains of the others, k times. Done one pick at a time that
is k passes over all N tokens, bound by memory and by launches. ``lazy_greedy`` looks ahead among few candidates, a
block of picks at a time:

1. Candidates are the tokens with the largest gains. The plain loop walks among them alone: a small matrix, on the host.
2. Gains only fall, so the largest gain outside the candidates bounds all of those: a pick whose own gain exceeds it is
   what the plain loop over all tokens would have picked. The walk stops before the first that does not.
3. All N gains are brought up to date for the block's picks at once, by matrix multiplication, all rows together.

The first pick of a block is always exact, so there is progress; lower indices win ties, as in the plain loop.

``stepwise_greedy`` is that plain loop, on buffers of fixed size. Its host never waits for a result: nothing is read
back, and where the loop stands is a tensor. So on a GPU the k launches of a few kernels become k replays of one CUDA
graph. Both return the same picks, up to the rounding of gains that are nearly equal. Pruners use the first, which is
the faster one wherever both were measured; the second is there to be measured on GPUs.
"""

from __future__ import annotations

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CANDIDATES = 192, 768  # tokens among which the loop walks at first, and at most; more make longer blocks
NEVER = -float("inf")  # gain of what is picked, padding, or nothing but rounding
Array = NDArray[Any]


class Criterion(ABC):
    """A criterion, which greedy selection maximises.

    It remembers what the picks so far imply, and serves one selection only.
    """

    @abstractmethod
    def among(self, candidates: Tensor) -> Tensor:
        """What ``lower`` needs to know of the candidates.

        Args:
            candidates: (B, M) token indices.

        Returns:
            (B, M, M).
        """

    @abstractmethod
    def lower(self, gain: Array, pick: int, matrix: Array, past: Array) -> Array:
        """The gains after one pick of the plain loop among the candidates of one row.

        Args:
            gain: (M,) before the pick.
            pick: its position among the candidates.
            matrix: (M, M) from ``among``.
            past: (picks + 1, M) what earlier picks of this walk left here; the last row is for this pick.

        Returns:
            (M,) gains after the pick.
        """

    @abstractmethod
    def step(self, gain: Tensor, pick: Tensor, at: Tensor) -> Tensor:
        """The gains after one more pick of each row, without a wait for the device.

        Args:
            gain: (B, N) before it; ``NEVER`` at a pick that gains nothing.
            pick: (B, 1) token indices.
            at: (1,) how many picks there were before.

        Returns:
            (B, N) gains after the pick.
        """

    @abstractmethod
    def update(self, gain: Tensor, picks: Tensor, counts: list[int]) -> Tensor:
        """The gains after a block of picks of each row.

        Args:
            gain: (B, N) before them.
            picks: (B, S) token indices: ``counts`` of each row, then repetitions.
            counts: how many picks each row has.

        Returns:
            (B, N) gains after the picks.
        """


Loop = Callable[[Criterion, Tensor, Tensor, int], Tensor]  # ``lazy_greedy`` or ``stepwise_greedy``


@torch.no_grad()
def lazy_greedy(criterion: Criterion, gain: Tensor, floor: Tensor, k: int) -> Tensor:
    """The greedy picks in order, found by looking ahead among few candidates.

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


@torch.no_grad()
def stepwise_greedy(criterion: Criterion, gain: Tensor, floor: Tensor, k: int) -> Tensor:
    """The greedy picks in order, found by the plain loop, without a wait for the device.

    Args:
        criterion: what is maximised.
        gain: (B, N) of a first pick; ``NEVER`` for what may not be picked.
        floor: (B, N) a gain that is not above it is rounding, and counts as none.
        k: number of picks in each row, tokens; not more than may be picked.

    Returns:
        (B, k) distinct token indices. Once nothing is left to gain in a row, its lowest indices that may be picked.
    """
    batch, n = gain.shape
    gain, free = gain.clone(), gain > NEVER
    order = torch.zeros(batch, k, dtype=torch.long, device=gain.device)
    at = torch.zeros(1, dtype=torch.long, device=gain.device)
    tokens = torch.arange(n, device=gain.device)

    def step() -> None:
        live = torch.where(free & (gain > floor), gain, NEVER)
        best = free & (live == live.amax(1, keepdim=True))
        pick = torch.where(best, tokens, n).amin(1, keepdim=True)  # argmax may return any of equals on a GPU
        gain.copy_(criterion.step(live, pick, at))
        free.scatter_(1, pick, False)
        order.index_copy_(1, at, pick)
        at.add_(1)

    _repeat(step, k, gain.device)
    return order


def _repeat(step: Callable[[], None], times: int, device: torch.device) -> None:
    """Run a step; on a GPU the first time as it is, which also warms up, and after that as a graph."""
    if device.type != "cuda" or times == 1:
        for _ in range(times):
            step()
        return
    with torch.cuda.device(device):
        current, (side, pool) = torch.cuda.current_stream(), _place(torch.cuda.current_device(), threading.get_ident())
        side.wait_stream(current)
        with torch.cuda.stream(side):
            step()
            graph = torch.cuda.CUDAGraph()
            # Not torch.cuda.graph, which empties the allocator's cache.
            graph.capture_begin(pool=pool.id, capture_error_mode="thread_local")  # type: ignore[arg-type]
            try:
                step()
            finally:
                graph.capture_end()
            for _ in range(times - 1):
                graph.replay()
        current.wait_stream(side)


@functools.cache
def _place(device: int, thread: int) -> tuple[torch.cuda.Stream, torch.cuda.MemPool]:
    """Where a thread's graphs run, one after another, and the memory that they use in turn."""
    return torch.cuda.Stream(), torch.cuda.MemPool()  # type: ignore[no-untyped-call]
