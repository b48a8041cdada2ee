"""Saliency by the attention of the vision tower's CLS token, which knows nothing of the prompt.

Paper: https://arxiv.org/abs/2412.01818 (FasterVLM, which keeps the tokens with most of it)
Differs: FasterVLM keeps the top tokens; as a conditioning it takes the place of relevance in CDPruner's kernel, which
    no paper does. Towers without a CLS token have ``received_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import CONDITIONINGS, Conditioning, Scope, over_heads
from tokenprune.core.signals import Signal, TowerAttention
from tokenprune.core.tokens import VisualTokens


@CONDITIONINGS.register("cls_attention", paper="https://arxiv.org/abs/2412.01818")
@dataclass(frozen=True)
class CLSAttention(Conditioning):
    """Attention of the CLS token to a visual token's patches, mean over heads; the same for every prompt."""

    @property
    def requires(self) -> frozenset[Signal]:
        return frozenset({TowerAttention("cls")})

    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        return over_heads(tokens, TowerAttention("cls"))
