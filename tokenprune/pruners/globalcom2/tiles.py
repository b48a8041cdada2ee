"""A picture and its tiles: which tokens are where, how much of each tile stays, and which tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.core.errors import SelectionError
from tokenprune.core.tokens import VisualTokens

TEMPERATURE = 10.0  # of the softmax over tiles


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tokens of a picture and of its tiles, whose lines are put together.

    Attributes:
        segment: (N,) long, 0 for the whole picture, then the tiles in raster order.
        sizes: tokens of each.
        whole: (height, width) of the whole picture, in tokens.
        stitched: (height, width) of the tiles put together.
        columns: tiles in a line of tiles.
    """

    segment: Tensor
    sizes: tuple[int, ...]
    whole: tuple[int, int]
    stitched: tuple[int, int]
    columns: int

    @classmethod
    def of(cls, tokens: VisualTokens) -> Tiles:
        """The tiles of a row of tokens.

        Raises:
            SelectionError: if it is not known where tokens are in their tiles, or they make no whole lines.
        """
        segment, place = tokens.segment, tokens.place
        if segment is None or place is None:
            raise SelectionError(
                "globalcom2 needs to know where tokens are in their tiles, and these rows do not say it"
            )
        sizes = torch.bincount(segment).tolist()
        lengths = [tuple((place[segment == each, 1:].amax(0) + 1).tolist()) for each in range(len(sizes))]
        later = (place[:, 1] > 0) & (segment > 0)
        first = int(later.long().argmax()) if bool(later.any()) else len(segment)
        columns = int((segment[:first] > 0).any()) and int(segment[:first].max())
        height = sum(lines for lines, _ in lengths[1::columns])
        width = sum(each for _, each in lengths[1 : 1 + columns])
        if height * width != sum(sizes[1:]):
            raise SelectionError("globalcom2 needs tiles in lines and columns, and these rows have others")
        return cls(segment, tuple(sizes), lengths[0], (height, width), columns)

    def weights(self, z: Tensor) -> Tensor:
        """By what each tile's share is multiplied, (B, tiles), from logits (B, N)."""
        lines = (len(self.sizes) - 1) // self.columns
        y, x = (
            (torch.arange(length, device=z.device) // max(1, length // parts)).clamp(max=parts - 1)
            for length, parts in zip(self.whole, (lines, self.columns), strict=True)
        )
        block = (y[:, None] * self.columns + x).flatten()
        sums = z.new_zeros(len(z), lines * self.columns).index_add(1, block, z[:, self.segment == 0])
        grown = ((sums - sums.amax(1, keepdim=True)) / TEMPERATURE).exp()
        share = grown / (grown.sum(1, keepdim=True) + 1e-8)
        return 1 + share - share.mean(1, keepdim=True)

    def scores(self, z: Tensor) -> Tensor:
        """What says which tokens stay, (B, N): logits, in tiles with those of the whole picture at their places."""
        first = self.segment == 0
        picture = rearrange(z[:, first], "b (h w) -> b 1 h w", h=self.whole[0])
        around = torch.zeros_like(z)
        around[:, ~first] = interpolate(picture, self.stitched, mode="bilinear", align_corners=False).flatten(1)
        return torch.where(first, z, self._unit(z) + self._unit(around))

    def _unit(self, x: Tensor) -> Tensor:
        """Numbers (B, N), those of each segment divided by their length."""
        square = x.new_zeros(len(x), len(self.sizes)).index_add(1, self.segment, x.square())
        return x / square.sqrt().clamp(min=torch.finfo(x.dtype).tiny)[:, self.segment]
