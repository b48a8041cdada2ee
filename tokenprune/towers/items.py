"""Images and videos after the vision tower, and the rows of their visual tokens that a pruner chooses among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenprune.towers.pictures import Pictures

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Unit:
    """A row of one item.

    Attributes:
        tokens: (n,) long, ascending: which of the item's visual tokens.
        grid: (height, width) if they are in raster order, else None.
    """

    tokens: Tensor
    grid: Grid | None = None


@dataclass(frozen=True, eq=False)
class Item:
    """An image or a video after the vision tower.

    Attributes:
        features: (n, D) its visual tokens.
        units: disjoint rows of them.
        pixels: what it was made of; any shape.
        pictures: the same as other encoders can see it; None if it is not known where its tokens are in a picture.
    """

    features: Tensor
    units: Sequence[Unit]
    pixels: Tensor
    pictures: Pictures | None = None
