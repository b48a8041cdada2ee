"""VisPruner: what the vision tower's CLS token attends to, and of the rest what is unlike it.

Paper: https://arxiv.org/abs/2412.01818 (the later version; the first is FasterVLM)
Code: https://github.com/Theia-4869/VisPruner (Apache-2.0)
Differs:
    - Any number of tokens may be left over for diversity. The code stops with an error when that is odd, which it is at
      an odd number of dropped patches.
    - Cosines are float32 products of features that are normalised in their own dtype. The rounds amplify what rounding
      changes: half precision, or equal attention in another order, changes a fifth to two thirds of the diverse tokens.
    - Towers without a CLS token: the attention that patches receive from one another stands in (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerStates
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.ranking import descending
from tokenprune.functional.vectors import unit
from tokenprune.pruners.base import register_pruner
from tokenprune.pruners.dense import DensePruner
from tokenprune.pruners.saliency import tower_attention

AT_A_TIME = 8  # so many tokens leave in a round


@register_pruner("vispruner", paper="https://arxiv.org/abs/2412.01818", idea="attention")
@dataclass(frozen=True, kw_only=True)
class VisPruner(DensePruner):
    """Keeps the tokens to which CLS attends most, and of the others those that are least like one another.

    Attributes:
        important_ratio: share of the kept tokens that attention chooses, in [0, 1]; the rest is chosen for diversity.
    """

    important_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important_ratio <= 1:
            raise ConfigError(f"option 'important_ratio' is {self.important_ratio!r}; it must be a number in [0, 1]")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, and the hidden states that are compared."""
        return frozenset({tower_attention(), TowerStates()})

    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        order = descending(over_heads(tokens, tower_attention()))
        important = int(k * self.important_ratio)
        unlike = diverse(tokens.signal(TowerStates()), order[:, important:], k - important)
        return TokenSelection(torch.cat([order[:, :important], unlike], 1).sort(1).values, tokens.num_tokens)


def diverse(features: Tensor, rest: Tensor, number: int) -> Tensor:
    """What is left when tokens leave round by round, those that are most like one of the other half.

    Args:
        features: (B, N, D).
        rest: (B, R) long, candidates in the order by which the halves are dealt, one to each in turn.
        number: so many stay.

    Returns:
        (B, number) long.
    """
    x = unit(features)
    cosine, row = x @ x.mT, torch.arange(len(x), device=x.device)[:, None, None]
    while number and rest.shape[1] > number:
        first, second = rest[:, 0::2], rest[:, 1::2]
        nearest = cosine[row, first[:, :, None], second[:, None]].amax(2)
        leave = min(AT_A_TIME, rest.shape[1] - number)
        rest = torch.cat([first.gather(1, descending(nearest))[:, leave:], second], 1)
    return rest[:, :number]
