"""Pruners as parts of other pruners: a name, a mapping of name and options, or in Python a pruner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.options import construct
from tokenprune.pruners.base import PRUNERS, Pruner

Given = str | Mapping[str, Any] | Pruner


def make(given: Given) -> tuple[Pruner, Budget | None]:
    """The pruner, and its budget if it has one.

    Raises:
        RegistryError, ConfigError, BudgetError: if the mapping does not describe a pruner.
    """
    if isinstance(given, Pruner):
        return given, given.budget
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"a pruner inside another needs a name, got {name!r}")
    limits = {key: value for key in ("keep_tokens", "keep_ratio") if (value := options.pop(key, None)) is not None}
    pruner = construct(PRUNERS.get(name), options, f"pruner {name!r}")
    return pruner, construct(Budget, limits, f"pruner {name!r}") if limits else pruner.budget


def complete(given: Given) -> Given:
    """The same with all options, for a record of what ran."""
    if isinstance(given, Pruner):
        return given
    pruner, budget = make(given)
    options = {f.name: getattr(pruner, f.name) for f in dataclasses.fields(pruner) if f.init}
    limits = budget.to_mapping() if budget and budget != pruner.budget else {}
    return {"name": given if isinstance(given, str) else given["name"], **options, **limits}
