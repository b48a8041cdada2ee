"""Vectors of tokens: their precision, unit length, cosines, and taking some of them."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Numbers in the precision of all arithmetic here: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Vectors divided by their L2 norm, which is rounded to the dtype they come in; a zero vector stays zero.

    Args:
        x: (..., D) floating point.

    Returns:
        (..., D), widened.
    """
    limits, wide = torch.finfo(x.dtype), widen(x)
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp(limits.tiny, limits.max)
    if wide is x:
        return x / norm
    rounded = wide.div_(norm.to(x.dtype)).to(x.dtype)  # what x / norm is
    return wide.copy_(rounded)  # the pages are there already


def inverse_norm(x: Tensor) -> Tensor:
    """One over the L2 norm of vectors; finite for a zero vector, which times that stays zero.

    Args:
        x: (..., D), widened.

    Returns:
        (...,).
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm.clamp_min(torch.finfo(x.dtype).tiny).reciprocal()


def mean_cosine(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over ``y`` of the cosine of each ``x`` to it.

    Args:
        x: (B, N, C).
        y: (B or 1, M, C).
        mask: (B or 1, M) bool, which of ``y`` count; all if None.

    Returns:
        (B, N) in [-1, 1].
    """
    wide = widen(x)
    cosines = (wide @ unit(widen(y)).mT).mul_(inverse_norm(wide)[..., None])
    if mask is None:
        return cosines.mean(-1)
    return (cosines * mask[:, None]).sum(-1) / mask.sum(-1, keepdim=True)


def of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a batch; not a copy if these are all of them.

    Args:
        x: (B, ...).
        rows: (G,) long, ascending and distinct.

    Returns:
        (G, ...).
    """
    return x if len(rows) == len(x) else x.index_select(0, rows)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The vectors of some tokens of each row.

    Args:
        x: (B, N, D).
        index: (B, n) long.

    Returns:
        (B, n, D).
    """
    flat = index + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*index.shape, x.shape[2])  # copies whole vectors
