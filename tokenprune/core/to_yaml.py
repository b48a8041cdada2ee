"""From a configuration back to what one would write in YAML."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenprune.core.budget import Budget


def to_plain(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain mappings and lists.

    Args:
        config: whose fields are plain, dataclasses, tuples of these, or have a ``to_mapping`` of their own. Budgets of
            one kind become one mapping.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    match value:
        case (Budget() as first, *_):
            return {**first.to_mapping(), first.kind: [budget.value for budget in value]}
        case tuple():
            return [_plain(item) for item in value]
        case _ if hasattr(value, "to_mapping"):
            return value.to_mapping()
        case _ if dataclasses.is_dataclass(value):
            return to_plain(value)
    return value
