"""DART: tokens unlike a few pivots, which are duplicated least.

Paper: https://arxiv.org/abs/2502.11494
Code: https://github.com/ZichenWen1/DART (Apache-2.0; read from the copy xqy1111111/DART)
Differs:
    - Exactly the budget is kept. The code keeps the image pivots and as many tokens for each pivot, with its 4 + 4
      pivots 8 q + 4; here, the first pivots take one more if it does not divide. A budget below the number of image
      pivots keeps those of largest keys alone.
    - Pivots choose in ascending order of position; the code's order is that in which CPython iterates over a set. 62 of
      the 68 tokens of the golden case are the same.
    - Any batch; norms and cosines are float32 whatever the model's dtype.
    - A prompt with less text than text pivots uses what there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.core.errors import ConfigError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Keys, NormedHidden, Signal, TextKeys, TextMask, TextNormedHidden
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage, decoder
from tokenprune.core.steps import Positions
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import take
from tokenprune.pruners.base import Pruner, register_pruner
from tokenprune.pruners.dart.pivots import largest, least_similar

TEXT_KEYS, TEXT_MASK, TEXT_HIDDEN = TextKeys(rows="all"), TextMask("all"), TextNormedHidden("all")


@register_pruner("dart", paper="https://arxiv.org/abs/2502.11494", idea="diversity")
@dataclass(frozen=True, kw_only=True)
class DART(Pruner):
    """Keeps a few pivots, the tokens with the largest keys, and those least similar to these and to text pivots.

    Attributes:
        layer: decoder layer (0-based) at whose input tokens leave; the keys are those of the layer before.
        image_pivots: visual tokens that are pivots.
        text_pivots: tokens of the text after them that are pivots.
    """

    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    positions: Positions = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("image_pivots", "text_pivots"):
            if (number := getattr(self, option)) < 1:
                raise ConfigError(f"option {option!r} is {number!r}; it must be an integer of at least 1")

    @property
    def requires(self) -> frozenset[Signal]:
        """Keys of the layer before, and hidden states at the stage, of image and text."""
        return frozenset({Keys(), NormedHidden(), TEXT_KEYS, TEXT_MASK, TEXT_HIDDEN})

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """The input of ``layer``."""
        return (decoder(self.layer),)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        valid, mask = tokens.valid_or_all, tokens.signal(TEXT_MASK)
        hidden, text = tokens.signal(NormedHidden()), tokens.signal(TEXT_HIDDEN)
        image_pivots = largest(tokens.signal(Keys()), min(self.image_pivots, k), valid)
        text_pivots = largest(tokens.signal(TEXT_KEYS), min(self.text_pivots, mask.shape[1]), mask)
        kept = torch.zeros_like(valid).scatter(1, image_pivots, True)
        kept |= least_similar(
            hidden,
            pivots=torch.cat([take(hidden, image_pivots), take(text, text_pivots)], 1),
            present=torch.cat([torch.ones_like(image_pivots, dtype=torch.bool), mask.gather(1, text_pivots)], 1),
            pool=valid & ~kept,
            number=k - image_pivots.shape[1],
        )
        return TokenSelection(kept.nonzero()[:, 1].view(-1, k), tokens.num_tokens)
