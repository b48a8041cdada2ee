"""The configuration of a fit: which model, questions and base pruner, how divergence is measured, and the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.options import construct
from tokenprune.pruners.dop.cost import CostKind
from tokenprune.pruners.dop.policy import AttentionReading, Direction, Positions
from tokenprune.sweeps.config import Part, load_mapping, parse_model
from tokenprune.sweeps.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A fit of depth-wise policies.

    Attributes:
        model: the model.
        task: the questions; its first ``samples`` are used.
        pruner: the base, which chooses the visual tokens that enter the LLM.
        budget: one kind (``flops`` of the decoder layers in prefill for one question, ``average_tokens`` or
            ``milliseconds`` of the decoder layers in prefill on this machine) and its values; a policy for each.
        samples: questions that divergence is measured on.
        positions, direction, attention: see ``pruners.dop.policy.Objective``.
        query: fit a depth of its own for queries.
        points: measured values of each parameter, at least 2; the others are interpolated.
        top: candidates that are measured jointly for each budget; of these the best is chosen.
        batch_size: questions at a time.
        max_new_tokens: longest answer for ``teacher_forced``, tokens.
        output: folder of the fits' folders.
        imports: see ``RunConfig``.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: Part
    pruner: Part
    budget: Mapping[CostKind, tuple[float, ...]]
    samples: int = 50
    positions: Positions = "first_token"
    direction: Direction = "forward"
    attention: AttentionReading = "remove"
    query: bool = False
    points: int = 12
    top: int = 5
    batch_size: int = 10
    max_new_tokens: int = 16
    output: str = "runs/policies"
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, least in {"samples": 1, "points": 2, "top": 1, "batch_size": 1, "max_new_tokens": 1}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"{key} must be at least {least}, got {getattr(self, key)}")
        kinds = get_args(CostKind)
        if len(self.budget) != 1 or not set(self.budget) <= set(kinds):
            raise BudgetError(f"budget: give exactly one of {', '.join(kinds)}, got {', '.join(self.budget) or 'none'}")
        if not self.values or not all(_positive(value) for value in self.values):
            raise BudgetError(f"budget: {self.kind} must be positive numbers, got {list(self.values)}")
        if self.query and self.attention == "update_only":
            raise ConfigError(
                "query has no meaning with attention='update_only', where attention is the queries' depth"
            )

    @property
    def kind(self) -> CostKind:
        """The kind of cost that the budgets limit."""
        (kind,) = self.budget
        return kind

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the budgets."""
        return next(iter(self.budget.values()))

    def to_mapping(self) -> dict[str, Any]:
        """The configuration as plain mappings and lists, as one would write it in YAML."""
        parts = {"task": self.task.to_mapping(), "pruner": self.pruner.to_mapping()}
        mapping = {**asdict(self), **parts, "budget": {self.kind: list(self.values)}, "imports": list(self.imports)}
        return mapping if self.imports else {key: value for key, value in mapping.items() if key != "imports"}


def load_fit_config(path: Path | str, overrides: Sequence[str] = ()) -> FitConfig:
    """Read a configuration file of a fit; arguments and errors as of ``sweeps.config.load_config``."""
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "model": parse_model,
        "task": Part.of,
        "pruner": Part.of,
        "budget": _budget,
    }
    given = {k: parsers[k](v, k) if k in parsers else v for k, v in load_mapping(path, overrides).items()}
    return construct(FitConfig, given, "config")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and value > 0


def _budget(value: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of a kind to values, got {value!r}")
    return {key: tuple(v) if isinstance(v, list | tuple) else (v,) for key, v in value.items() if v is not None}
