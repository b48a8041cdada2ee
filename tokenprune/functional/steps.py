"""Greedy selection one pick at a time, on buffers of fixed size, so that a CUDA graph can replay the step.

Each step passes over all N tokens, as the plain loop does, but the host never waits for a result: nothing is read back,
and where the loop stands is a tensor. On a GPU the k launches of a few kernels each become k replays of one graph.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from tokenprune.functional.lazy import NEVER, Criterion


@torch.no_grad()
def stepwise_greedy(criterion: Criterion, gain: Tensor, floor: Tensor, k: int) -> Tensor:
    """The greedy picks, in order; arguments and result as of ``lazy.lazy_greedy``."""
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
