"""Signals of visual tokens each of which stands for a square of patches: they are means over the square.

Projectors of such families pool the patches, or put their features side by side.
"""

from __future__ import annotations

from einops import rearrange, reduce
from torch import Tensor

from tokenprune.towers.items import Grid


def pool(x: Tensor, grid: Grid, side: int) -> Tensor:
    """Means (I, tokens, C) over squares of patches, both in raster order.

    Args:
        x: (I, height * width, C).
        grid: (height, width), patches.
        side: of a square, patches; what is left over at the right and at the bottom is in no token.
    """
    height, width = grid[0] // side, grid[1] // side
    whole = rearrange(x, "i (h w) c -> i h w c", h=grid[0])[:, : height * side, : width * side]
    return reduce(whole, "i (h a) (w b) c -> i (h w) c", "mean", a=side, b=side)
