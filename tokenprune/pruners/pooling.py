"""Pooling: the mean of the visual tokens in each of K cells, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.core.errors import SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.cells import Cells
from tokenprune.functional.vectors import widen
from tokenprune.pruners.base import Pruner, register_pruner


@register_pruner("pooling", idea="baseline")
@dataclass(frozen=True, kw_only=True)
class Pooling(Pruner):
    """Replaces the tokens in each of K cells of the image by their mean, at the place of the cell's middle.

    The cells form a grid if one with K is close to the image's proportions, else bands of nearly equal numbers; see
    ``functional.cells``.
    """

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if tokens.grid is None:
            raise SelectionError("pooling needs visual tokens in a grid, and these rows have none; try another scope")
        cells = Cells.of(k, tokens.grid)
        owner, keep = (x.to(tokens.features.device) for x in (cells.owner, cells.centers))
        features = widen(tokens.features)
        sums = features.new_zeros(len(features), k, features.shape[2]).index_add_(1, owner, features)
        merged = (sums / owner.bincount(minlength=k)[:, None]).to(tokens.features.dtype)
        return TokenSelection(keep.expand(len(features), -1).contiguous(), tokens.num_tokens, merged=merged)
