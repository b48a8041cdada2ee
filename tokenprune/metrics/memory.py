"""Bytes of a key-value cache, read from the cache itself."""

from __future__ import annotations

from typing import Any


def kv_cache_bytes(cache: Any) -> int:
    """Bytes that the keys and values of all layers and rows take.

    Args:
        cache: a Hugging Face ``Cache`` after prefill.
    """
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
