"""A grid of visual tokens cut into cells: how to share a picture out among fewer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]
LONGEST = 2.0  # long over short side of a cell, where all cells are alike


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of a grid of visual tokens, in raster order.

    Attributes:
        owner: (N,) long, the cell of each token of the grid.
        centers: (K,) long, increasing: the token nearest to the middle of each cell, the upper left one of several.
    """

    owner: Tensor
    centers: Tensor

    @classmethod
    def of(cls, k: int, grid: Grid) -> Cells:
        """Cut a grid into ``k`` cells, at most as many as it has tokens, each of which has at least one.

        The cells are those of a coarser grid if one with ``k`` has cells at most twice as long as wide; else they lie
        in bands, whose numbers of cells differ by one. A token belongs to the cell in which its middle lies.
        """
        (height, width), columns = grid, torch.tensor(_columns(k, grid))
        y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
        band = (2 * y + 1) * len(columns) // (2 * height)
        owner = (columns.cumsum(0) - columns)[band] + (2 * x + 1) * columns[band] // (2 * width)

        def middle(place: Tensor) -> Tensor:
            ends = (
                torch.zeros(k).long().scatter_reduce(0, owner, place, e, include_self=False) for e in ("amin", "amax")
            )
            return sum(ends, torch.zeros(k).long()) // 2

        return cls(owner, middle(y) * width + middle(x))


def coarser(k: int, grid: Grid) -> Grid:
    """The smallest (height, width) with at least ``k`` cells, none more than twice as long as wide."""
    for number in range(k, grid[0] * grid[1]):
        columns = _columns(number, grid)
        if len(set(columns)) == 1 and _skew(len(columns), number, grid) <= LONGEST:
            return len(columns), columns[0]
    return grid


def _skew(bands: int, k: int, grid: Grid) -> float:
    """Long over short side of a cell of ``k`` in so many bands."""
    ratio = k * grid[0] / grid[1] / bands**2
    return max(ratio, 1 / ratio)


def _columns(k: int, grid: Grid) -> list[int]:
    """How many cells each band has."""
    fits = range(math.ceil(k / grid[1]), min(grid[0], k) + 1)
    even = [bands for bands in fits if k % bands == 0 and _skew(bands, k, grid) <= LONGEST]
    bands = min(even or fits, key=lambda bands: _skew(bands, k, grid))
    return [k * (i + 1) // bands - k * i // bands for i in range(bands)]
