"""DivPrune: the visual tokens that are farthest from one another.

Paper: https://arxiv.org/abs/2503.02175
Code: https://github.com/vbdi/divprune (CC BY-NC 4.0; this file is written from the formula alone)
Differs:
    - Distances are float32 whatever the features are; the code computes them in the model's dtype, where half precision
      ties hundreds of them.
    - A token is picked once. The code may pick exact duplicates again and then repeats them in the prompt.
    - The set is a row of visual tokens (for LLaVA-1.5 the image, which is also the code's).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.functional.farthest import max_min
from tokenprune.pruners.base import Pruner, register_pruner
from tokenprune.types import TokenSelection, VisualTokens


@register_pruner("divprune", paper="https://arxiv.org/abs/2503.02175")
@dataclass(frozen=True, kw_only=True)
class DivPrune(Pruner):
    """Keeps the tokens whose smallest cosine distance to one another is largest, picked greedily."""

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        return TokenSelection.from_order(max_min(tokens.features, k, tokens.valid), tokens.num_tokens)
