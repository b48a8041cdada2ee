"""None: no pruning, what every other method is compared with.

Differs: there is no paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tokenprune.core.budget import Budget
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.steps import Positions, Segments
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import Pruner, register_pruner


@register_pruner("none", idea="baseline")
@dataclass(frozen=True, kw_only=True)
class NoPruning(Pruner):
    """Keeps all visual tokens, whatever the budget: the unpruned model."""

    positions: Positions = field(default="auto", init=False)  # no option: there are no gaps to close
    segments: Segments = field(default="apart", init=False)  # likewise: nothing is chosen

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """No stage: nothing leaves anywhere."""
        return ()

    def schedule(self, spec: ModelSpec, budget: Budget, total: int) -> tuple[int, ...]:
        """No counts, as there are no stages; any budget will do."""
        return ()

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """All tokens, those of padding left out."""
        return TokenSelection.from_mask(tokens.valid_or_all.to(torch.bool))
