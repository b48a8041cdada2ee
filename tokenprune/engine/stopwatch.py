"""Seconds of a block of work on a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that was asked of it.

    That of a model whose weights are offloaded is ``meta``: then it is the machine's accelerator, if there is one.
    """
    if device.type == "meta":
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@contextmanager
def stopwatch(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds that the block takes to ``seconds[name]``."""
    start = now(device)
    yield
    seconds[name] = seconds.get(name, 0.0) + now(device) - start
