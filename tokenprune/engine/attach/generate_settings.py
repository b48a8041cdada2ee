"""What ``generate`` goes by, where it counts the prompt."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def setting(model: Any, arguments: Mapping[str, Any], name: str) -> int:
    """What ``generate`` goes by: an argument, a given generation config, or the model's; 0 if none says."""
    if name in arguments:
        return int(arguments[name] or 0)
    configs = (arguments.get("generation_config"), model.generation_config)
    values = (getattr(config, name, None) for config in configs)
    return next((int(value) for value in values if value is not None), 0)


def lengths(model: Any, arguments: Mapping[str, Any], removed: int, *, compiling: bool) -> dict[str, Any]:
    """Arguments that differ for a pruned prompt: limits that count it, less the columns that were removed from it.

    Args:
        model: with a generation config.
        arguments: of the caller.
        removed: columns.
        compiling: whether transformers may compile decoding with a static cache; hooks are Python.
    """
    limits: dict[str, Any] = {} if compiling else {"disable_compile": True}
    for name, stronger in {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}.items():
        limit = setting(model, arguments, name)
        if limit and not setting(model, arguments, stronger):
            limits[name] = limit - removed
    if (given := arguments.get("generation_config")) is None or not limits:
        return limits
    config = copy.deepcopy(given)  # settings beside a given config are deprecated
    for name in limits.keys() - {name for name in limits if arguments.get(name) is not None}:
        setattr(config, name, limits.pop(name))
    return {**limits, "generation_config": config}
