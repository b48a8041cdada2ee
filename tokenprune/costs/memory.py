"""Bytes of a key-value cache, read from it or as a plan has them, and the most that some work allocates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec

FULL = ("out of memory", "not enough memory", "can't allocate memory")  # as the allocators of torch say it


def kv_cache_bytes_by_layer(cache: Any) -> list[int]:
    """Bytes that the keys and values of all rows take, layer by layer.

    Args:
        cache: a Hugging Face ``Cache`` after prefill.
    """
    return [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]


def planned_kv_bytes_by_layer(
    spec: ModelSpec, plan: OperationPlan, text_tokens: int, bytes_per_number: int
) -> list[int]:
    """Bytes of the keys and values of one prompt in each layer.

    Args:
        spec: of the model.
        plan: which visual tokens take part in what.
        text_tokens: all other tokens of the prompt.
        bytes_per_number: 4 for float32, 2 for half precision.
    """
    width = 2 * spec.llm.kv_heads * spec.llm.head_dim * bytes_per_number
    tokens = [text_tokens + plan.cached_tokens(layer) for layer in range(spec.llm.layers)]
    return [width * spec.llm.cached(layer, number) for layer, number in enumerate(tokens)]


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that are allocated at a time while something runs.

    Args:
        work: what runs.
        device: where; on a GPU what was allocated before counts, on a CPU it does not.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device))
    with _silence_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return max(0, *accumulate(int(event.self_cpu_memory_usage) for event in events))


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Silence the process's stderr, to which the profiler's C++ prints past ``sys.stderr``."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out; if so, torch gives back what it holds of a GPU and does not use."""
    said = str(error).lower()
    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in FULL)
    )
    if full and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return full
