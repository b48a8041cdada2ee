"""Random visual tokens with every signal that there is."""

import torch
from torch import Tensor

from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens

N, D, C = 36, 16, 8
GRIDS = {N: (6, 6), 1: (1, 1)}


def signals(batch: int, n: int, generator: torch.Generator, constant: bool = False) -> dict[str, Tensor]:
    """All signals of rows of n visual tokens; constant ones say nothing."""

    def draw(*shape: int) -> Tensor:
        return torch.ones(shape) if constant else torch.randn(shape, generator=generator)

    return {
        Signal.CLIP_IMAGE_EMBEDS: draw(batch, n, C),
        Signal.CLIP_TEXT_EMBEDS: draw(batch, 2, C),
        Signal.PROMPT_EMBEDS: draw(batch, 5, D),
        Signal.PROMPT_MASK: torch.ones(batch, 5, dtype=torch.bool),
        Signal.CLS_ATTENTION: draw(batch, 2, n).softmax(-1),
        Signal.RECEIVED_ATTENTION: draw(batch, 2, n).softmax(-1),
        Signal.TEXT_ATTENTION: draw(batch, 2, 3, n).softmax(-1),
        Signal.KEYS: draw(batch, n, C),
        Signal.VISION_HIDDEN: draw(batch, n, D),
        Signal.TEXT_MASK: torch.ones(batch, 3, dtype=torch.bool),
        Signal.TEXT_EMBEDS: draw(batch, 3, D),
        Signal.IMAGE_EMBEDS: draw(batch, n, D),
        Signal.TEXT_KEYS: draw(batch, 3, C),
        Signal.NORMED_HIDDEN: draw(batch, n, D),
        Signal.TEXT_NORMED_HIDDEN: draw(batch, 3, D),
        Signal.ROPE_SIMILARITY: draw(batch, 3, n),
        Signal.RESIZED_FEATURES: draw(batch, n, D),
        Signal.EVIDENCE: draw(batch, n),
    }


def make(
    batch: int = 3,
    n: int = N,
    features: Tensor | None = None,
    constant: bool = False,
    dtype: torch.dtype = torch.float32,
    valid: Tensor | None = None,
) -> VisualTokens:
    """Visual tokens of random features with all signals, the same on each call."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, n, D, generator=generator) if features is None else features
    grid = GRIDS.get(n) if valid is None else None  # rows of different lengths have none
    return VisualTokens(features.to(dtype), signals(batch, n, generator, constant), grid=grid, valid=valid)
