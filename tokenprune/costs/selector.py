"""FLOPs of choosing: what a stage reads of the LLM for its scores, and the matrix products of the selection itself.

The features of another encoder, if a method asks for them, are a part of it: the method alone needs that encoder.

The first is in closed form. The second depends on the method's own code, so it is counted while the method chooses
among random tokens of the right sizes; the picks of a greedy method, which are no matrix products, are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.core.signals import RopeSimilarity, Scored, Sizes, TextAttention
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.steps import Selector, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.towers.timm_features import EncoderSize


def selection_flops(
    spec: ModelSpec,
    steps: Sequence[Step],
    counts: Sequence[int],
    arriving: Sequence[int],
    text_tokens: int,
    encoder: EncoderSize | None = None,
) -> int:
    """FLOPs of choosing at all stages, for one prompt with one segment of visual tokens.

    Args:
        spec: of the model.
        steps: where tokens leave, and what selects there.
        counts: visual tokens that each step selects.
        arriving: visual tokens that arrive at each step.
        text_tokens: all other tokens of the prompt, at least 1; where a method reads all text after the image, these.
        encoder: whose features the stage before the LLM needs, if it does.
    """
    total = encoder.flops * spec.vision_tiles if encoder else 0
    channels = encoder.channels if encoder else None
    for step, keep, tokens in zip(steps, counts, arriving, strict=True):
        if step.stage.inside:
            total += _signal_flops(spec.llm, step.selector, tokens, text_tokens)
        given = _stand_in(step, Sizes(spec, tokens, arriving[0], text_tokens, channels))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            step.selector.select(given, keep)
        total += counter.get_total_flops()
    return total


def _signal_flops(llm: TransformerSpec, selector: Selector, tokens: int, text_tokens: int) -> int:
    """FLOPs of a stage's signals: rows of attention, and the projections of a layer that has not run yet."""
    length, queries, keys = tokens + text_tokens, llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    total, ahead = 0, 0
    for wanted in selector.requires:
        signal = wanted.alternatives[0]
        if not isinstance(signal, Scored):
            continue
        rows = text_tokens if signal.all_rows else 1
        total += 2 * queries * rows * length * isinstance(signal, TextAttention)
        total += 2 * llm.head_dim * rows * tokens * isinstance(signal, RopeSimilarity)
        if signal.layer == "own":
            ahead = max(ahead, 2 * llm.width * (length * keys + rows * queries + keys))  # one row of values
    return total + ahead


def _stand_in(step: Step, sizes: Sizes) -> VisualTokens:
    """Random visual tokens and signals of the sizes that a stage sees."""
    tokens = sizes.tokens
    height = max(side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0)
    wanted = [signal.alternatives[0] for signal in step.selector.requires]
    tower = sizes.spec.vision if step.stage.place in ("tower", "projector") else None  # there tokens are its states
    width = (tower or sizes.spec.llm).width
    features = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0))
    signals = {str(signal): signal.stand_in(sizes) for signal in wanted}
    return VisualTokens(features, signals, grid=(height, tokens // height))
