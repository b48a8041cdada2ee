"""No conditioning: all tokens are equally relevant, so a DPP weighs diversity alone.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, the "DPPruner" ablation)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen


@CONDITIONINGS.register("none", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class NoConditioning(Conditioning):
    """All tokens are equally relevant."""

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        return widen(tokens.features.new_ones(tokens.features.shape[:2]))
