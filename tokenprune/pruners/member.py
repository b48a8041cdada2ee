"""Pruners as parts of other pruners: a name, a mapping of name and options, or in Python a pruner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.options import construct
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import Stage
from tokenprune.core.steps import Positions, Segments, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import PRUNERS, Pruner

Given = str | Mapping[str, Any] | Pruner


def make(given: Given) -> tuple[Pruner, Budget | None]:
    """The pruner that a name or mapping describes, and its budget if it has one.

    Raises:
        RegistryError: if no pruner has the name.
        ConfigError: if there is no name, or an option is bad.
        BudgetError: if the budget is contradictory or out of its range.
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
    """A pruner inside another with all of its options, for a record of what ran."""
    if isinstance(given, Pruner):
        return given
    pruner, budget = make(given)
    options = {f.name: getattr(pruner, f.name) for f in dataclasses.fields(pruner) if f.init}
    limits = budget.to_mapping() if budget and budget != pruner.budget else {}
    return {"name": given if isinstance(given, str) else given["name"], **options, **limits}


@dataclass(frozen=True, kw_only=True)
class Wrapper(Pruner):
    """A pruner that lets another one select.

    Attributes:
        base: what selects: a name, a mapping of name and options, or in Python a pruner.
    """

    base: Given = field(default_factory=lambda: {"name": "cdpruner"})
    positions: Positions = field(default="auto", init=False)  # no option: the base has its own
    segments: Segments = field(default="apart", init=False)  # likewise: the base has its own

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "base", complete(self.base))

    @cached_property
    def member(self) -> tuple[Pruner, Budget | None]:
        """The base, made, with its budget if it has one."""
        return make(self.base)

    @property
    def requires(self) -> frozenset[Signal]:
        return self.member[0].requires

    @property
    def budget(self) -> Budget | None:
        return self.member[1]

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        return self.member[0].stages(spec)

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        return self.member[0].steps(spec)

    def counts(self, spec: ModelSpec, keep: int, total: int) -> tuple[int, ...]:
        return self.member[0].counts(spec, keep, total)

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """What the base selects."""
        return self.member[0].select(tokens, k)
