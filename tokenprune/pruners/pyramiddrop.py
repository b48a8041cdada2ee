"""PyramidDrop: a share of the visual tokens leaves at each of several layers of the LLM.

Paper: https://arxiv.org/abs/2410.17247
Code: https://github.com/Cooperx521/PyramidDrop (MIT)
Differs:
    - The budget is what is left after the last layer, and the ratios give the shape of the way there: at ratio r stay
      int(total * (keep / total) ** (log r / log r_last)) tokens. A budget of r_last gives the code's schedule, and the
      code has no other. This rule is ours.
    - ``layers`` follow the depth of the model unless given; at 32 layers they are the code's 8, 16, 24.
    - Grouped-query attention, any attention kernel and padding on either side work; the code fails with the first two
      and pads on the right. It also cuts prompts at the tokenizer's longest length.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log

from torch import Tensor

from tokenprune.core.errors import ConfigError
from tokenprune.core.signals import Signal, TextAttention
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen
from tokenprune.pruners.base import ScorePruner, register_pruner

ROUNDING = 1e-9  # tokens; a power that is a whole number may come out short of it, by less than that


@register_pruner("pyramiddrop", paper="https://arxiv.org/abs/2410.17247", idea="attention")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(ScorePruner):
    """Keeps the tokens to which the last token of the prompt attends most, fewer at each of several layers.

    Attributes:
        layers: decoder layers (0-based) at whose inputs tokens leave, ascending; the attention is their own, as it
            would be on all tokens. None: at equal distances, for three ratios a quarter, a half and three quarters of
            the LLM.
        ratios: shares of the visual tokens at first that are left after each, descending, between 0 and 1.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or not all(first > second for first, second in pairwise((1, *self.ratios, 0))):
            raise ConfigError(f"option 'ratios' is {list(self.ratios)}; it must hold falling numbers between 0 and 1")
        if self.layers is None:
            return
        if any(first >= second for first, second in pairwise(self.layers)):
            raise ConfigError(f"option 'layers' is {list(self.layers)}; it must hold rising numbers")
        if len(self.layers) != len(self.ratios):
            raise ConfigError(f"{len(self.layers)} layers and {len(self.ratios)} ratios do not match; give one of each")

    @property
    def requires(self) -> frozenset[Signal]:
        """Attention of the last token."""
        return frozenset({TextAttention("own")})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The inputs of ``layers``, or of layers at equal distances."""
        parts = len(self.ratios) + 1
        spread = (spec.llm.layers * part // parts for part in range(1, parts))
        return tuple(map(decoder, spread if self.layers is None else self.layers))

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        """How many visual tokens each stage selects: a geometric way from ``total`` to ``keep``, by the ratios."""
        share = keep / max(total, 1)  # in a composition nothing may arrive
        powers = (log(ratio) / log(self.ratios[-1]) for ratio in self.ratios)
        return tuple(int(total * share**power + ROUNDING) for power in powers)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention probability, mean over the heads."""
        return widen(tokens.signal(TextAttention("own"))[:, :, -1]).mean(1)
