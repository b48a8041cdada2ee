"""FLOPs in closed form, as the hardware multiplies; see ``TransformerSpec.layer_flops`` for what is charged.

They equal what ``torch.utils.flop_counter.FlopCounterMode`` counts, which a test checks. What papers charge instead is
in ``conventions``.
"""

from __future__ import annotations

from itertools import pairwise

from tokenprune.types import ModelSpec, Operation, OperationPlan


def llm_prefill_flops(spec: ModelSpec, plan: OperationPlan, text_tokens: int) -> int:
    """FLOPs of the decoder layers for one prompt with one set of visual tokens, without the LM head.

    Args:
        spec: sizes of the model.
        plan: which visual tokens take part in what.
        text_tokens: all other tokens of the prompt; they take part in everything. With 0 the result is the visual-only
            figure that CDPruner's paper prints.

    Returns:
        FLOPs.
    """
    return plan.prefill_flops(spec.llm, text_tokens)


def llm_decode_flops(spec: ModelSpec, plan: OperationPlan, text_tokens: int) -> int:
    """FLOPs of the decoder layers for the first token that is generated, without the LM head.

    Args:
        spec: sizes of the model.
        plan: of the prefill; a layer's cache holds the tokens that gave it keys and values.
        text_tokens: all other tokens of the prompt.
    """
    layers = range(spec.llm.layers)
    cached = sum(text_tokens + plan.tokens(layer, Operation.ATTENTION_SOURCE) for layer in layers)
    attention = 4 * spec.llm.heads * spec.llm.head_dim * cached  # of one query: scores, and their sum of values
    return spec.llm.layers * spec.llm.layer_flops(1, 1, 1) + attention


def lm_head_flops(spec: ModelSpec) -> int:
    """FLOPs of the LM head on one position: prefill needs its logits at the last token alone."""
    return 2 * spec.llm.width * spec.vocabulary


def vision_flops(spec: ModelSpec) -> int:
    """FLOPs of the vision tower for one image: patch embedding and the layers that are used; 0 if it is unknown."""
    tower = spec.vision
    if tower is None:
        return 0
    n = spec.vision_tokens
    patches = n // spec.visual_tokens * spec.visual_tokens  # without CLS, which no patch embedding makes
    embedding = 2 * patches * spec.patch_inputs * tower.width

    def layer(size: int) -> int:
        """All tokens pass it, and attend to those of their part alone."""
        return n // size * tower.layer_flops(size, size, size)

    tile = n // spec.vision_tiles
    inside = spec.vision_window_layers
    return embedding + (tower.layers - inside) * layer(tile) + inside * layer(spec.vision_window or tile)


def projector_flops(spec: ModelSpec) -> int:
    """FLOPs of the projector for one image."""
    return 2 * spec.projectors * spec.visual_tokens * sum(a * b for a, b in pairwise(spec.projector))
