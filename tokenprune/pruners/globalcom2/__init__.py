"""GlobalCom2: the whole picture's attention says how many tokens of each tile stay, and with the tile's own, which.

Paper: https://arxiv.org/abs/2501.05179
Code: https://github.com/xuyang-liu16/GlobalCom2 (Apache-2.0)
Differs:
    - Exactly the budget stays: the whole picture keeps its share, and what is left goes to the tiles by the code's
      ratios, rounded to the largest remainders. ``rounding="down"`` rounds each number down, as the code does.
    - Tokens stay where they are in the picture. In padded pictures, the code puts what stays of a tile at the places of
      its first tokens, so that tokens move to other lines.
    - Newlines of lines that are nothing but padding are not in the prompt, as transformers has it.
    - A picture without tiles keeps what CLS attends to most; the code leaves such a picture as it is. Of a video, the
      first frame is taken for the whole and the others for tiles (inferred).
    - Logits and scores are float32; the code has float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.quota import Quota
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerLogits
from tokenprune.core.steps import Segments
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending, highest, rank_within
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.globalcom2.tiles import Tiles

LOGITS = TowerLogits(-1)
Order = Literal["attention", "raster"]
Rounding = Literal["largest", "down"]


@register_pruner("globalcom2", paper="https://arxiv.org/abs/2501.05179", idea="attention")
@dataclass(frozen=True, kw_only=True)
class GlobalCom2(DensePruner):
    """Keeps what CLS attends to in the whole picture and in its tiles, more of the tiles that it attends to more.

    Attributes:
        order: of the whole picture's tokens in the prompt: ``attention``, as in the code, or ``raster``.
        rounding: of the number of tokens of each tile: to the ``largest`` remainders, so that the budget is met, or
            ``down``, as in the code; fewer tokens then stay than the budget says.
    """

    segments: Segments = "together"
    order: Order = "attention"
    rounding: Rounding = "largest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, get_args(Order))
        check_choice("rounding", self.rounding, get_args(Rounding))

    @property
    def requires(self) -> frozenset[Signal]:
        """What the attention of CLS is before the softmax, in the tower's last layer."""
        return frozenset({LOGITS})

    @property
    def adaptive(self) -> bool:
        """Whether numbers are rounded down, so that the tiles decide how many tokens stay."""
        return self.rounding == "down"

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        z = over_heads(tokens, LOGITS)
        if tokens.segment is None or not bool(tokens.segment.any()):
            return self._ordered(z, highest(z, k), torch.zeros_like(z[0], dtype=torch.long))
        tiles = Tiles.of(tokens)
        counts = z.new_tensor([self._counts(weight, tiles.sizes, k) for weight in tiles.weights(z)], dtype=torch.long)
        kept = rank_within(tiles.scores(z), tiles.segment) < counts[:, tiles.segment]
        return self._ordered(z, kept, tiles.segment)

    def _counts(self, weight: Tensor, sizes: tuple[int, ...], k: int) -> list[int]:
        """How many tokens of the whole picture and of each tile stay.

        Args:
            weight: (tiles,), 1 on average: by what a tile's share of its tokens is multiplied.
            sizes: tokens of the whole picture and of each tile.
            k: how many stay.
        """
        ratio = k / sum(sizes)
        if self.rounding == "down":
            shares = [min(1.0, ratio * float(each)) for each in weight]
            return [max(1, int(sizes[0] * ratio)), *(int(n * each) for n, each in zip(sizes[1:], shares, strict=True))]
        whole = max(round(sizes[0] * ratio), k - sum(sizes[1:]))
        if whole == k:
            return [whole, *[0] * len(weight)]
        return [whole, *Quota(k - whole, sizes[1:]).shares(weight * weight.new_tensor(sizes[1:]))]

    def _ordered(self, z: Tensor, kept: Tensor, segment: Tensor) -> TokenSelection:
        """The selection of ``kept`` (B, N) bool, the whole picture's tokens first and by falling logits."""
        selection = TokenSelection.from_mask(kept)
        if self.order == "raster":
            return selection
        place = torch.arange(len(segment), device=z.device).expand_as(z)
        rank = torch.where(segment == 0, descending(z.masked_fill(segment > 0, -torch.inf)).argsort(1), place)
        there = selection.there
        order = (
            rank.gather(1, selection.keep.clamp(min=0)).masked_fill(~there, len(segment)).argsort(dim=1, stable=True)
        )
        return TokenSelection(selection.keep, len(segment), sequence=selection.keep.gather(1, order))
