"""VScan, its vision stage: what an early layer attends to in each window, and a late one anywhere; others are merged.

Paper: https://arxiv.org/abs/2505.22654
Code: https://github.com/Tencent/SelfEvolvingAgent, folder VScan (MIT)
Differs:
    - What does not divide by the windows goes to the late layer, so exactly the budget stays. The code for LLaVA keeps
      45 of 58, and stops with an error below 32.
    - Its second stage, inside the LLM, is ``pyramiddrop`` at one layer, and no part of this one; budgets of the paper
      are averages over both.
    - Windows of any grid: lines and columns that do not divide join the last window, as in the code for Qwen.
    - Towers without a CLS token: the attention that patches receive from one another stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import highest, rank_within
from tokenprune.functional.vectors import unit, widen
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention

PerWindow = Literal["floor", "ceil"]


@register_pruner("vscan", paper="https://arxiv.org/abs/2505.22654", idea="attention")
@dataclass(frozen=True, kw_only=True)
class VScan(DensePruner):
    """Keeps what CLS attends to early in each window and late anywhere, and folds the others into what is most alike.

    Attributes:
        local_layer: of the vision tower, from 0, that chooses in windows; a number in [0, 1) is so far up: layer 5 of
            24.
        window: tokens on a side of a window.
        per_window: how half the budget, over the windows, is rounded to the most tokens of a window: ``floor``, as in
            the official code for LLaVA, or ``ceil``, as in that for Qwen.
    """

    local_layer: int | float = 5 / 24
    window: int = 6
    per_window: PerWindow = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("per_window", self.per_window, get_args(PerWindow))
        if self.window < 1:
            raise ConfigError(f"option 'window' is {self.window!r}; it must be an integer of at least 1")
        if isinstance(self.local_layer, float) and not 0 <= self.local_layer < 1:
            raise ConfigError(f"option 'local_layer' is {self.local_layer}; it must be an integer or in [0, 1)")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention in both layers."""
        return frozenset({tower_attention(self.local_layer), tower_attention()})

    def local(self, tokens: VisualTokens, k: int) -> Tensor:
        """Which tokens (B, N) the early layer chooses, at most half of ``k``.

        Raises:
            SelectionError: if the tokens have no grid.
        """
        if tokens.grid is None:
            raise SelectionError("vscan needs visual tokens in a grid, and these rows have none; try another scope")
        score = over_heads(tokens, tower_attention(self.local_layer))
        window = windows(tokens.grid, self.window).to(score.device)
        number, half = int(window.max()) + 1, k // 2
        most = half // number if self.per_window == "floor" else -(-half // number)
        return highest(score, half, rank_within(score, window) < most)

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        late = over_heads(tokens, tower_attention()).masked_fill(self.local(tokens, k), torch.inf)
        kept = highest(late, k)
        keep, rest = (mask.nonzero()[:, 1].view(len(kept), -1) for mask in (kept, ~kept))
        x = widen(tokens.features)
        nearest = torch.stack([most_alike(*row) for row in zip(x, keep, rest, strict=True)])
        own = torch.arange(tokens.num_tokens, device=keep.device).expand_as(kept)
        into = own.scatter(1, rest, nearest)
        return TokenSelection(keep, tokens.num_tokens, into=into)


def most_alike(x: Tensor, keep: Tensor, rest: Tensor) -> Tensor:
    """Which kept token of one row, of indices (K,), is most like each other one, of indices (R,); x is (N, D).

    Of one row: for several at once, pages of new memory take longer than the products.
    """
    return keep[(x[rest] @ unit(x[keep]).T).argmax(1)]  # which one does not depend on the other's own length


def windows(grid: tuple[int, int], side: int) -> Tensor:
    """The window (N,) long of each token of a grid (height, width), in raster order."""
    y, x = ((torch.arange(length) // side).clamp(max=max(0, length // side - 1)) for length in grid)
    return (y[:, None] * (x.max() + 1) + x).flatten()
