"""Prefill time of a pruned model relative to the unpruned one.

Both run in one process, turn by turn (A B A B ...), so that a slow minute of the machine hits both; the ratio is the
median over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from statistics import median
from typing import TypeVar

import torch

from tokenprune.engine.stopwatch import now

T = TypeVar("T")


@dataclass(frozen=True)
class Stages:
    """Seconds of one prefill of a batch, by stage.

    Attributes:
        vision: vision tower, and projector.
        selection: choosing the visual tokens; 0 if nothing is pruned.
        prefill: the LLM on the whole prompt.
    """

    vision: float
    selection: float
    prefill: float


@dataclass(frozen=True)
class PrefillTimes:
    """Prefill times that ``compare`` measured.

    Attributes:
        stages: median seconds of the pruned model.
        ratio: (selection + prefill) of the pruned model over prefill of the unpruned one; below 1 is faster. The vision
            tower, which both run alike, is left out.
    """

    stages: Stages
    ratio: float


def time_call(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Call a function and time it.

    Args:
        function: to call.
        device: that is waited for before and after.

    Returns:
        The function's result, and seconds.
    """
    start = now(device)
    result = function()
    return result, now(device) - start


def compare(unpruned: Callable[[], Stages], pruned: Callable[[], Stages], *, repeats: int) -> PrefillTimes:
    """Time the unpruned and the pruned prefill, turn by turn, after one untimed turn each.

    Args:
        unpruned: runs the unpruned prefill once and returns its seconds.
        pruned: runs the pruned prefill once and returns its seconds.
        repeats: timed pairs, at least 1.
    """
    turns = [(unpruned(), pruned()) for _ in range(repeats + 1)][1:]
    ours = [b for _, b in turns]
    stages = Stages(*map(median, zip(*map(astuple, ours), strict=True)))
    return PrefillTimes(stages, median((b.selection + b.prefill) / a.prefill for a, b in turns))
