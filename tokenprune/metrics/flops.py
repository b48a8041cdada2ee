"""FLOPs in closed form, as the hardware multiplies: two per multiply-add, matrix products only, GQA-aware.

They equal what ``torch.utils.flop_counter.FlopCounterMode`` counts, which a test checks. Attention is charged as the
full square of queries and keys: that is what SDPA's formula counts, whether or not a kernel skips the masked half.
"""

from __future__ import annotations

from itertools import pairwise

from tokenprune.types import ModelSpec, Operation, OperationPlan, TransformerSpec


def _layer_flops(spec: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """One layer in which some tokens give keys and values, some ask and receive, and some pass the MLP."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    projections = sources * spec.width * 2 * keys + receivers * spec.width * 2 * queries
    attention = 2 * queries * receivers * sources
    return 2 * (projections + attention + mlp * spec.mlp_matrices * spec.width * spec.mlp_width)


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

    def tokens(layer: int, operation: Operation) -> int:
        return text_tokens + plan.tokens(layer, operation)

    return sum(
        _layer_flops(
            spec.llm,
            tokens(layer, Operation.ATTENTION_SOURCE),
            tokens(layer, Operation.ATTENTION_RECEIVER),
            tokens(layer, Operation.MLP),
        )
        for layer in range(spec.llm.layers)
    )


def lm_head_flops(spec: ModelSpec) -> int:
    """FLOPs of the LM head on one position: prefill needs its logits at the last token alone."""
    return 2 * spec.llm.width * spec.vocabulary


def vision_flops(spec: ModelSpec) -> int:
    """FLOPs of the vision tower for one image: patch embedding and the layers that are used; 0 if it is unknown."""
    if spec.vision is None:
        return 0
    n = spec.vision_tokens
    patches = n // spec.visual_tokens * spec.visual_tokens  # without CLS, which no patch embedding makes
    embedding = 2 * patches * spec.patch_inputs * spec.vision.width
    return embedding + spec.vision.layers * _layer_flops(spec.vision, n, n, n)


def projector_flops(spec: ModelSpec) -> int:
    """FLOPs of the projector for one image."""
    return 2 * spec.visual_tokens * sum(a * b for a, b in pairwise(spec.projector))
