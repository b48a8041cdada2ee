"""How much accuracy is left after pruning, and how well a finite number of questions tells."""

from __future__ import annotations

import math


def retention(accuracy: float, unpruned: float) -> float | None:
    """Accuracy as a share of the unpruned one; above 1 if pruning helped, None if there was nothing to keep.

    Args:
        accuracy: with pruning, in [0, 1].
        unpruned: without, in [0, 1].
    """
    return accuracy / unpruned if unpruned > 0 else None


def standard_error(accuracy: float, questions: int) -> float:
    """Binomial standard error of an accuracy.

    Args:
        accuracy: in [0, 1].
        questions: how many it was measured on, at least 1.
    """
    return math.sqrt(accuracy * (1 - accuracy) / questions)
