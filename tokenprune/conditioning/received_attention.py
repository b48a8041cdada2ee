"""Saliency by the attention that a visual token's patches receive, for vision towers without a CLS token.

Paper: https://arxiv.org/abs/2412.04467 (VisionZip, which scores so where there is no CLS token)
Differs: VisionZip keeps the top tokens and merges others; as a conditioning it takes the place of relevance in
    CDPruner's kernel, which no paper does. What it is exactly, see ``towers/attention.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope, over_heads
from tokenprune.core.signals import Signal, TowerAttention
from tokenprune.core.tokens import VisualTokens


@CONDITIONINGS.register("received_attention", paper="https://arxiv.org/abs/2412.04467")
@dataclass(frozen=True)
class ReceivedAttention(Conditioning):
    """Attention of all patches of the picture to a visual token's, mean over heads; the same for every prompt."""

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({TowerAttention("patches")})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        return over_heads(tokens, TowerAttention("patches"))
