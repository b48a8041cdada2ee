"""What transformers calls the cache of keys and values: ``past_key_values``, and ``cache`` from 5.24 on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

OLD = "past_key_values"
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else OLD


def renamed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call with the cache under the name that this version of transformers uses."""
    return {CACHE if name == OLD else name: value for name, value in arguments.items()}


def cache_of(output: Any) -> Any:
    """The cache that a model returned, or None."""
    return getattr(output, CACHE, None)
