"""What ``generate`` goes by, where it counts the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def setting(model: Any, arguments: Mapping[str, Any], name: str) -> int:
    """What ``generate`` goes by: an argument, a given generation config, or the model's; 0 if none says."""
    if name in arguments:
        return int(arguments[name] or 0)
    configs = (arguments.get("generation_config"), model.generation_config)
    values = (getattr(config, name, None) for config in configs)
    return next((int(value) for value in values if value is not None), 0)


def lengths(model: Any, arguments: Mapping[str, Any], removed: int) -> dict[str, int]:
    """Limits that count the prompt, less the columns that pruning removed from it."""
    limits = {}
    for name, stronger in {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}.items():
        limit = setting(model, arguments, name)
        if limit and not setting(model, arguments, stronger):
            limits[name] = limit - removed
    return limits
