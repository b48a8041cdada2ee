"""How much is left of a score after pruning, and how well a finite number of questions tells."""

from __future__ import annotations

import math
from collections.abc import Sequence


def retention(score: float | None, unpruned: float | None) -> float | None:
    """Score as a share of the unpruned one; above 1 if pruning helped, None if there was nothing to keep.

    Args:
        score: with pruning.
        unpruned: without.
    """
    if score is None or unpruned is None:
        return None
    return score / unpruned if unpruned > 0 else None


def standard_error(scores: Sequence[float]) -> float:
    """Standard error of a mean by the variance of the sample, which is the binomial one if scores are 0 or 1.

    Args:
        scores: at least one.
    """
    mean = math.fsum(scores) / len(scores)
    if all(score in (0, 1) for score in scores):  # so that it is the binomial one to the last bit
        variance = mean * (1 - mean)
    else:
        variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    return math.sqrt(variance / len(scores))
