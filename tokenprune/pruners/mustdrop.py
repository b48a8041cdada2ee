"""MustDrop, its vision stage: windows of patches that are most alike become means, behind the tower's first layer.

Paper: https://arxiv.org/abs/2411.10803
Code: https://github.com/liuting20/MustDrop (its headers say Apache-2.0)
Differs:
    - The budget says how many windows are merged, the most alike first; of the last one, as many patches as have to be,
      its first ones (inferred). ``count="threshold"`` merges those that are alike enough, as the code does, which takes
      the smallest number of a batch for all its pictures.
    - Fewer tokens than there are windows: windows are larger, by one on each side until they are few enough (inferred).
    - Windows that the grid does not divide into are cut off at its end; the code stops with an error.
    - Patches enter the LLM in raster order, a mean at the place of the last patch of its window. The code puts the
      means before all other patches.
    - Not there: tokens that CLS attends to most in the last layer are never dropped by the code's stages inside the
      LLM, which are no part of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, tower
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending, rank_within
from tokenprune.functional.vectors import unit, widen
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner

Count = Literal["budget", "threshold"]


@register_pruner("mustdrop", paper="https://arxiv.org/abs/2411.10803", idea="merging")
@dataclass(frozen=True, kw_only=True)
class MustDrop(DensePruner):
    """Merges the windows of patches that are most alike, behind the first layer of the vision tower.

    Attributes:
        window: patches on a side of a window, at least 2.
        count: ``budget``, or ``threshold``: as many windows as are alike enough.
        threshold: what the mean cosine in a window must be for that.
    """

    window: int = 3
    count: Count = "budget"
    threshold: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("count", self.count, get_args(Count))
        if self.window < 2:
            raise ConfigError(f"option 'window' is {self.window!r}; it must be an integer of at least 2")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"option 'threshold' is {self.threshold!r}; it must be a cosine, in [-1, 1]")

    @property
    def budget(self) -> Budget | None:
        """All tokens if the threshold decides how many stay; else None."""
        return Budget(keep_ratio=1.0) if self.adaptive else None

    @property
    def adaptive(self) -> bool:
        """Whether the patches decide how many of a row stay."""
        return self.count == "threshold"

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Behind the first layer of the vision tower."""
        return (tower(1),)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if tokens.grid is None:
            raise SelectionError("mustdrop needs visual tokens in a grid, and these rows have none; try another scope")
        window = windows(tokens.grid, self.window, k).to(tokens.features.device)
        alike, sizes = likeness(tokens.features, window), window.bincount()
        leaving = torch.full_like(alike[:, 0], tokens.num_tokens - k, dtype=torch.long)
        if self.adaptive:
            leaving = leaving.maximum(((alike >= self.threshold) * (sizes - 1)).sum(1))
        into = folded(window, left_by(alike, sizes, leaving))
        own = torch.arange(tokens.num_tokens, device=into.device)
        return TokenSelection(TokenSelection.from_mask(into == own).keep, tokens.num_tokens, into=into)


def windows(grid: tuple[int, int], side: int, most: int) -> Tensor:
    """The window (N,) long of each token of a grid (height, width), in raster order.

    Args:
        grid: of the tokens.
        side: of a window; more if there would be too many.
        most: how many windows there may be.
    """
    while -(-grid[0] // side) * -(-grid[1] // side) > most:
        side += 1
    y, x = (torch.arange(length) // side for length in grid)
    return (y[:, None] * (x.max() + 1) + x).flatten()


def likeness(x: Tensor, window: Tensor) -> Tensor:
    """Mean cosine (B, W) of the pairs of different tokens in each window; -inf where there is no pair.

    Args:
        x: (B, N, D).
        window: (N,) long, from 0.
    """
    vectors, sizes = unit(widen(x)), window.bincount()
    sums = vectors.new_zeros(len(x), len(sizes), x.shape[2]).index_add(1, window, vectors)
    own = vectors.new_zeros(len(x), len(sizes)).index_add(1, window, vectors.square().sum(2))
    pairs = (sizes * (sizes - 1)).to(vectors)
    return ((sums.square().sum(2) - own) / pairs).masked_fill(pairs == 0, -torch.inf)


def left_by(alike: Tensor, sizes: Tensor, leaving: Tensor) -> Tensor:
    """How many tokens (B, W) long leave each window: all but one of those most alike, until enough have left.

    Args:
        alike: (B, W).
        sizes: (W,) long, tokens of each window.
        leaving: (B,) long, how many leave.
    """
    order = descending(alike)
    most = (sizes - 1)[order]
    before = most.cumsum(1) - most
    left = (leaving[:, None] - before).clamp(min=0).minimum(most)
    return torch.zeros_like(left).scatter(1, order, left)


def folded(window: Tensor, left: Tensor) -> Tensor:
    """The token (B, N) long that each is folded into: the last of those of its window that are merged, or itself.

    Args:
        window: (N,) long, from 0.
        left: (B, W) long, how many tokens leave each window; they and the next one are its first ones.
    """
    place = rank_within(torch.zeros_like(window)[None], window)[0]
    member = window.new_zeros(left.shape[1], int(place.max()) + 1)
    member[window, place] = torch.arange(len(window), device=window.device)
    gone = left[:, window]
    return torch.where(place <= gone, member[window, gone], torch.arange(len(window), device=window.device))
