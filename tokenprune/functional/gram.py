"""Products of all vectors of a row with one another."""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 128  # rows at a time; of each strip only what is right of its start is computed


@torch.no_grad()
def gram(x: Tensor) -> Tensor:
    """The matrix x x^T of each row, on a CPU for little over half the products.

    Args:
        x: (B, N, D).

    Returns:
        (B, N, N).
    """
    n = x.shape[1]
    if x.device.type != "cpu" or n <= STRIP:
        return x @ x.mT
    whole = x.new_empty(len(x), n, n)
    for start in range(0, n, STRIP):
        end = min(start + STRIP, n)
        for row, out in zip(x, whole, strict=True):
            torch.mm(row[start:end], row[start:].T, out=out[start:end, start:])
            out[end:, start:end] = out[start:end, end:].T
    return whole
