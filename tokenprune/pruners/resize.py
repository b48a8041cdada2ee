"""Resize: what the vision tower makes of a smaller picture.

Paper: https://arxiv.org/abs/2510.07143 (VTC-Bench, which shrinks the pictures of models that take any size)
Differs: towers of one size get the smaller picture too, with their position embeddings interpolated. That is inferred:
    such a tower never saw it in training, so a loss may be the tower's and not that of the detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.core.errors import SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, SmallerPicture
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.cells import Cells, coarser
from tokenprune.pruners.base import Pruner, register_pruner


@register_pruner("resize", paper="https://arxiv.org/abs/2510.07143", idea="baseline")
@dataclass(frozen=True, kw_only=True)
class Resize(Pruner):
    """Replaces the tokens by those of the picture shrunk to K patches, each at the place of what it shows.

    Where no grid has K patches, the next larger one is taken, and as many of its tokens leave, evenly.
    """

    @property
    def requires(self) -> frozenset[Signal]:
        """Visual tokens of the smaller picture."""
        return frozenset({SmallerPicture()})

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if tokens.grid is None:
            raise SelectionError("resize needs visual tokens in a grid, and these rows have none; try another scope")
        height, width = coarser(k, tokens.grid)
        number = height * width
        stay = (2 * torch.arange(k) + 1) * number // (2 * k)
        keep = Cells.of(number, tokens.grid).centers[stay].to(tokens.features.device)
        merged = tokens.signal(SmallerPicture())[:, stay.to(tokens.features.device)]
        return TokenSelection(keep.expand(len(merged), -1).contiguous(), tokens.num_tokens, merged=merged)
