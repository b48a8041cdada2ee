"""Relevance scores brought to a common scale, by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def min_max(scores: Tensor, valid: Tensor) -> Tensor:
    """(s - min + 1e-6) / (max - min), as CDPruner's code has it; 1 everywhere if all scores are equal.

    Args:
        scores: (B, N).
        valid: (B, N) bool; only these set the scale.

    Returns:
        (B, N) in [1e-6 / range, 1 + 1e-6 / range]; 0 where not valid.
    """
    low = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    extent = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - low
    scaled = torch.where(extent > 0, (scores - low + 1e-6) / extent, 1.0)
    return scaled.masked_fill(~valid, 0)


def softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """exp(s) / sum exp(s); equal for all valid tokens if all scores are equal.

    Args:
        scores: (B, N).
        valid: (B, N) bool; only these set the scale.

    Returns:
        (B, N) in [0, 1], with a sum of 1 in each row; 0 where not valid.
    """
    return scores.masked_fill(~valid, -torch.inf).softmax(1)


def rank(scores: Tensor, valid: Tensor) -> Tensor:
    """Share of the tokens that score no higher, in (0, 1]; 1 everywhere if all scores are equal.

    Args:
        scores: (B, N).
        valid: (B, N) bool; only these set the scale.

    Returns:
        (B, N) in (0, 1]; 0 where not valid.
    """
    ordered = scores.masked_fill(~valid, torch.inf).sort(1).values
    below = torch.searchsorted(ordered, scores.contiguous(), right=True)
    return (below.to(scores) / valid.sum(1, keepdim=True)).masked_fill(~valid, 0)


SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"min_max": min_max, "softmax": softmax, "rank": rank}
