"""Uniform: evenly spread over the image, whatever it shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.selection import TokenSelection
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import Pruner, register_pruner


@register_pruner("uniform", idea="baseline")
@dataclass(frozen=True, kw_only=True)
class Uniform(Pruner):
    """Keeps tokens at even steps along a Z-order curve over the image, or along the sequence if there is no grid."""

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        curve = _z_order(tokens.grid) if tokens.grid else torch.arange(tokens.num_tokens)
        keep = torch.stack([_evenly(curve[row[curve]], k) for row in tokens.valid_or_all.cpu()])
        return TokenSelection(keep.to(tokens.features.device), tokens.num_tokens)


def _evenly(curve: Tensor, k: int) -> Tensor:
    """(k,) increasing: the middles of k equal stretches of the curve."""
    ranks = (2 * torch.arange(k) + 1) * len(curve) // (2 * k)
    return curve[ranks].sort().values


def _z_order(grid: tuple[int, int]) -> Tensor:
    """(height * width,) raster indices along the Z-order curve, which visits squares of any size one after another."""
    height, width = grid
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    code = torch.zeros(height * width, dtype=torch.long)
    for bit in range(max(height, width).bit_length()):
        code |= (x >> bit & 1) << 2 * bit | (y >> bit & 1) << 2 * bit + 1
    return code.argsort()
