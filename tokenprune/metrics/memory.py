"""Bytes of a key-value cache: read from the cache itself, and as a plan has them."""

from __future__ import annotations

from typing import Any

from tokenprune.types import ModelSpec, Operation, OperationPlan


def kv_cache_bytes_by_layer(cache: Any) -> list[int]:
    """Bytes that the keys and values of all rows take, layer by layer.

    Args:
        cache: a Hugging Face ``Cache`` after prefill.
    """
    return [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]


def planned_kv_bytes_by_layer(
    spec: ModelSpec, plan: OperationPlan, text_tokens: int, bytes_per_number: int
) -> list[int]:
    """Bytes of the keys and values of one prompt in each layer.

    Args:
        spec: of the model.
        plan: which visual tokens take part in what.
        text_tokens: all other tokens of the prompt.
        bytes_per_number: 4 for float32, 2 for half precision.
    """
    width = 2 * spec.llm.kv_heads * spec.llm.head_dim * bytes_per_number
    tokens = [text_tokens + plan.tokens(layer, Operation.ATTENTION_SOURCE) for layer in range(spec.llm.layers)]
    return [width * spec.llm.cached(layer, number) for layer, number in enumerate(tokens)]
