"""FLOPs of choosing: what a stage reads of the LLM for its scores, and the matrix products of the selection itself.

The features of another encoder, if a method asks for them, are a part of it: the method alone needs that encoder.

The first is in closed form. The second depends on the method's own code, so it is counted while the method chooses
among random tokens of the right sizes; the picks of a greedy method, which are no matrix products, are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.steps import Selector, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.towers.timm_features import EncoderSize

SHARED = 768  # width of the space that CLIP ViT-L/14's image and text share; cards do not say it


def selection_flops(
    spec: ModelSpec,
    steps: Sequence[Step],
    counts: Sequence[int],
    arriving: Sequence[int],
    text_tokens: int,
    encoder: EncoderSize | None = None,
) -> int:
    """FLOPs of all stages for one prompt with one row of visual tokens.

    Args:
        spec: of the model.
        steps: where tokens leave, and what selects there.
        counts: visual tokens that each selects.
        arriving: visual tokens that arrive at each.
        text_tokens: all other tokens of the prompt, at least 1; where a method reads all text after the image, these.
        encoder: whose features the stage before the LLM needs, if it does.
    """
    total = encoder.flops * spec.vision_tiles if encoder else 0
    for step, keep, tokens in zip(steps, counts, arriving, strict=True):
        rows = text_tokens if step.selector.text_rows == "all" else 1
        if step.stage.layer is not None:
            total += _reading(spec.llm, step.selector, tokens, rows, text_tokens)
        given = _stand_in(spec, step, tokens, arriving[0], text_tokens, rows, encoder)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            step.selector.select(given, keep)
        total += counter.get_total_flops()
    return total


def _reading(llm: TransformerSpec, selector: Selector, tokens: int, rows: int, text_tokens: int) -> int:
    """What the signals of a stage cost: rows of attention, and the projections of a layer that has not run yet."""
    length, queries, keys = tokens + text_tokens, llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    attention = 2 * queries * rows * length if Signal.TEXT_ATTENTION in selector.requires else 0
    rotation = 2 * llm.head_dim * rows * tokens if Signal.ROPE_SIMILARITY in selector.requires else 0
    ahead = selector.scoring_layer == "own"
    return attention + rotation + ahead * 2 * llm.width * (length * keys + rows * queries + keys)  # one row of values


def _stand_in(
    spec: ModelSpec,
    step: Step,
    tokens: int,
    entered: int,
    text_tokens: int,
    rows: int,
    encoder: EncoderSize | None,
) -> VisualTokens:
    """Random visual tokens and signals of the sizes that a stage sees."""
    generator, llm, inside = torch.Generator().manual_seed(0), spec.llm, step.stage.layer is not None
    vision = spec.vision or llm

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    key = llm.kv_heads * llm.head_dim if inside else vision.width
    make = {
        Signal.CLIP_IMAGE_EMBEDS: lambda: draw(tokens, SHARED),
        Signal.CLIP_TEXT_EMBEDS: lambda: draw(1, SHARED),
        Signal.PROMPT_EMBEDS: lambda: draw(text_tokens, llm.width),
        Signal.PROMPT_MASK: lambda: torch.ones(1, text_tokens, dtype=torch.bool),
        Signal.CLS_ATTENTION: lambda: draw(vision.heads, tokens).softmax(-1),
        Signal.RECEIVED_ATTENTION: lambda: draw(vision.heads, tokens).softmax(-1),
        Signal.VISION_HIDDEN: lambda: draw(tokens, vision.width),
        Signal.ENCODER_FEATURES: lambda: draw(tokens, encoder.channels if encoder else vision.width),
        Signal.KEYS: lambda: draw(tokens, key),
        Signal.TEXT_ATTENTION: lambda: draw(llm.heads, rows, tokens).softmax(-1),
        Signal.TEXT_MASK: lambda: torch.ones(1, rows, dtype=torch.bool),
        Signal.TEXT_EMBEDS: lambda: draw(rows, llm.width),
        Signal.IMAGE_EMBEDS: lambda: draw(entered, llm.width),
        Signal.TEXT_KEYS: lambda: draw(rows, key),
        Signal.NORMED_HIDDEN: lambda: draw(tokens, llm.width),
        Signal.TEXT_NORMED_HIDDEN: lambda: draw(rows, llm.width),
        Signal.ROPE_SIMILARITY: lambda: draw(rows, tokens),
        Signal.RESIZED_FEATURES: lambda: draw(tokens, llm.width),
        Signal.EVIDENCE: lambda: draw(tokens),
    }
    height = max(side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0)
    signals: dict[str, Tensor] = {name: make[name]() for name in step.selector.requires}
    return VisualTokens(draw(tokens, llm.width), signals, grid=(height, tokens // height))
