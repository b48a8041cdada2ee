"""Unusually high scores, as a box plot marks them."""

from __future__ import annotations

import torch
from torch import Tensor

FENCE = 1.5  # distances of the quartiles


def high_outliers(scores: Tensor) -> Tensor:
    """How many scores of each row are above its third quartile by more than 1.5 times the distance of the quartiles.

    Args:
        scores: (B, N); quartiles are interpolated linearly.

    Returns:
        (B,) long.
    """
    quarter, three = torch.quantile(scores, scores.new_tensor([0.25, 0.75]), dim=1)
    above: Tensor = scores > (three + FENCE * (three - quarter))[:, None]
    return above.sum(1)
