"""HiPrune: objects by a middle layer of the vision tower, what surrounds them, and the rest by a deep one.

Paper: https://arxiv.org/abs/2508.00553
Code: https://github.com/Danielement321/HiPrune (MIT)
Differs:
    - The neighbours of an anchor are those in the grid. The code counts in the sequence: from the end of a line to the
      start of the next, and beyond the picture to its first or last token; ``neighbours="sequence"`` does so.
    - Registers are chosen among what is not kept yet, so exactly the budget stays; the code for Qwen may draw a token
      twice and keeps fewer.
    - The budget is that of a row; the code divides it by the pictures of a batch.
    - Attention is the mean over all tokens that ask, CLS too. It is put together of what CLS and what the patches pay,
      so of a tile whose padding is cut off, CLS counts a little more than in the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Layer, Signal, TowerAttention
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import highest, leading
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention

Neighbours = Literal["grid", "sequence"]


@register_pruner("hiprune", paper="https://arxiv.org/abs/2508.00553", idea="attention")
@dataclass(frozen=True, kw_only=True)
class HiPrune(DensePruner):
    """Keeps what a middle layer of the vision tower attends to, its neighbours, and what a deep layer attends to.

    Attributes:
        alpha: share of the kept tokens that are anchors and their four neighbours, in [0, 1].
        object_layer: of the vision tower, from 0, which chooses the anchors; a number in [0, 1) is so far up: layer 8
            of 24.
        neighbours: ``grid``: above, below, left and right; ``sequence``: as the official code counts them.
    """

    alpha: float = 0.1
    object_layer: int | float = 1 / 3
    neighbours: Neighbours = "grid"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("neighbours", self.neighbours, get_args(Neighbours))
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"option 'alpha' is {self.alpha!r}; it must be a number in [0, 1]")
        if isinstance(self.object_layer, float) and not 0 <= self.object_layer < 1:
            raise ConfigError(f"option 'object_layer' is {self.object_layer}; it must be an integer or in [0, 1)")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention in both layers."""
        return frozenset(signal for layer in (self.object_layer, None) for signal in _asked(layer))

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if tokens.grid is None:
            raise SelectionError("hiprune needs visual tokens in a grid, and these rows have none; try another scope")
        objects, deep = (_from_all(tokens, layer) for layer in (self.object_layer, None))
        anchors = leading(objects, min(round(k * self.alpha / 5), k // 5))
        kept = with_neighbours(anchors, tokens.grid, self.neighbours)
        return TokenSelection.from_mask(highest(deep.masked_fill(kept, torch.inf), k))


def _asked(layer: Layer | None) -> tuple[Signal, Signal]:
    return tower_attention(layer), TowerAttention("patches", layer)


def _from_all(tokens: VisualTokens, layer: Layer | None) -> Tensor:
    """(B, N) attention that tokens get from all of the tower, mean over the heads."""
    cls, patches = (over_heads(tokens, signal) for signal in _asked(layer))  # without CLS the first is the second
    return (cls + tokens.num_tokens * patches) / (tokens.num_tokens + 1)


def with_neighbours(anchors: Tensor, grid: tuple[int, int], neighbours: Neighbours) -> Tensor:
    """Which tokens of a grid are anchors or next to one.

    Args:
        anchors: (B, A) long.
        grid: (height, width), tokens.
        neighbours: what is next to a token.

    Returns:
        (B, N) bool.
    """
    number, width = grid[0] * grid[1], grid[1]
    own = anchors[:, :, None]
    near = own + torch.tensor([0, -1, 1, -width, width], device=anchors.device)
    if neighbours == "sequence":
        near = near.clamp(0, number - 1)
    else:
        inside = (near >= 0) & (near < number) & ((near % width - own % width).abs() <= 1)
        near = torch.where(inside, near, own)
    return torch.zeros(len(anchors), number, dtype=torch.bool, device=near.device).scatter(1, near.flatten(1), True)
