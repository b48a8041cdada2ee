"""SCOPE: tokens that cover all others, weighed by the attention of the vision tower's CLS token.

Paper: https://arxiv.org/abs/2510.24214
Code: https://github.com/kinredon/SCOPE (Apache-2.0 in its headers, no licence file; written from the formula alone)
Differs:
    - The budget is that of a row; the code divides it by the pictures of a batch.
    - Cosines and sums are float32 whatever the model's dtype, and a token of length 0 is like none.
    - Towers without a CLS token: the attention that patches receive from one another stands in (ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerStates
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.coverage import max_coverage
from tokenprune.functional.gram import gram
from tokenprune.functional.vectors import unit, widen
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention

Combine = Literal["multiply", "add"]


@register_pruner("scope", paper="https://arxiv.org/abs/2510.24214", idea="coverage")
@dataclass(frozen=True, kw_only=True)
class SCOPE(DensePruner):
    """Keeps tokens to which all others are like, picked greedily, with more weight on what CLS attends to.

    Attributes:
        alpha: power of the attention, at least 0; with 0 coverage alone counts.
        combine: whether attention multiplies the gain in coverage, or is added to it.
    """

    alpha: float = 1.0
    combine: Combine = "multiply"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("combine", self.combine, get_args(Combine))
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"option 'alpha' is {self.alpha!r}; it must be a number of at least 0")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, and the hidden states that cover one another."""
        return frozenset({tower_attention(), TowerStates()})

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        states = tokens.signal(TowerStates())
        heads = tokens.signal(tower_attention()).shape[1]
        weight = (heads * over_heads(tokens, tower_attention())) ** self.alpha
        how = "factor" if self.combine == "multiply" else "bonus"
        step = 1 if states.device.type == "cpu" else len(states)  # pages of new memory take longer than the products
        parts = zip(torch.split(states, step), torch.split(weight, step), strict=True)
        picks = [max_coverage(gram(unit(widen(part))), k, **{how: share}) for part, share in parts]
        return TokenSelection.from_order(torch.cat(picks), tokens.num_tokens)
