"""FastV: what the last token of the prompt attends to, after a few layers of the LLM.

Paper: https://arxiv.org/abs/2403.06764
Code: https://github.com/pkunlp-icler/FastV (no licence; this file is written from the formula alone)
Differs:
    - Tokens leave once, in the prefill, as in the code's Hugging Face variant. Its first variant, of the paper's
      accuracies, selects again for each generated token and masks instead of removing.
    - Each row keeps its own tokens; the code applies the choice of the first row to all.
    - Any visual token may leave and no text does; the code's scripts for LLaVA begin one position late.
    - The mean over heads is float32 whatever the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.core.signals import Signal, TextAttention
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
from tokenprune.core.steps import Positions
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen
from tokenprune.pruners.base import ScorePruner, register_pruner


@register_pruner("fastv", paper="https://arxiv.org/abs/2403.06764", idea="attention")
@dataclass(frozen=True, kw_only=True)
class FastV(ScorePruner):
    """Keeps the tokens to which the last token of the prompt attends most, in the layer before the others leave.

    Attributes:
        layer: decoder layer (0-based) at whose input tokens leave; the attention is that of the layer before.
    """

    layer: int = 2
    positions: Positions = "original"

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of the last token."""
        return frozenset({TextAttention()})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The input of ``layer``."""
        return (decoder(self.layer),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention probability, mean over the heads."""
        return widen(tokens.signal(TextAttention())[:, :, -1]).mean(1)
