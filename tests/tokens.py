"""Random visual tokens with every signal that there is."""

import torch

from tokenprune import Signal, VisualTokens

N, D, C = 36, 16, 8
GRIDS = {N: (6, 6), 1: (1, 1)}


def signals(batch, n, generator, constant=False):
    def draw(*shape):
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


def make(batch=3, n=N, features=None, constant=False, dtype=torch.float32, valid=None):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, n, D, generator=generator) if features is None else features
    grid = GRIDS.get(n) if valid is None else None  # rows of different lengths have none
    return VisualTokens(features.to(dtype), signals(batch, n, generator, constant), grid=grid, valid=valid)
