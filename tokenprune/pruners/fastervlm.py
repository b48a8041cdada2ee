"""FasterVLM: what the vision tower's CLS token attends to.

Paper: https://arxiv.org/abs/2412.01818
Code: https://github.com/Theia-4869/FasterVLM (Apache-2.0)
Differs:
    - The mean over heads is float32; the code takes it in the dtype of the pictures, where half precision ties tokens.
    - Towers without a CLS token: the attention that patches receive from one another stands in (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import ScorePruner, register_pruner
from tokenprune.pruners.saliency import tower_attention


@register_pruner("fastervlm", paper="https://arxiv.org/abs/2412.01818", idea="attention")
@dataclass(frozen=True, kw_only=True)
class FasterVLM(ScorePruner):
    """Keeps the tokens to which the vision tower's CLS token attends most."""

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of CLS, or of the patches where there is none."""
        return frozenset({tower_attention()})

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention probability, mean over the heads."""
        return over_heads(tokens, tower_attention())
