"""DivPrune: the visual tokens that are farthest from one another.

Paper: https://arxiv.org/abs/2503.02175
Code: https://github.com/vbdi/divprune (CC BY-NC 4.0; this file is written from the formula alone)
Differs:
    - Distances are float32 whatever the features are; the code computes them in the model's dtype, where half precision
      ties hundreds of them.
    - A token is picked once. The code may pick exact duplicates again and then repeats them in the prompt.
    - The set is a row of visual tokens (for LLaVA-1.5 the image, which is also the code's).
    - The features of another encoder are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.farthest import max_min
from tokenprune.pruners.base import Pruner, register_pruner
from tokenprune.pruners.feature_space import OWN, check_space, in_space, space_signals


@register_pruner("divprune", paper="https://arxiv.org/abs/2503.02175", idea="diversity")
@dataclass(frozen=True, kw_only=True)
class DivPrune(Pruner):
    """Keeps the tokens whose smallest cosine distance to one another is largest, picked greedily.

    Attributes:
        features: what distances are of: ``own``, or ``timm:<model>`` for the patches of another encoder.
    """

    features: str = OWN

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space(self.features)

    @property
    def requires(self) -> frozenset[Signal]:
        return space_signals(self.features)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        order = max_min(in_space(tokens, self.features), k, tokens.valid)
        return TokenSelection.from_order(order, tokens.num_tokens)
