"""The configuration of a study: which policies are measured, on which questions, at which budgets they compete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.options import construct
from tokenprune.sweeps.config import Part, load_mapping, parse_model
from tokenprune.sweeps.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """All depth-wise policies without dead work over one base pruner.

    Attributes:
        pruner: the base, which chooses the visual tokens that enter the LLM.
        tokens: how many enter it; each of them with all depths.
    """

    pruner: Part
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        for keep in self.tokens:
            Budget(keep_tokens=keep)  # refuses impossible numbers
        if not self.tokens:
            raise ConfigError("tokens is an empty list; give at least one number of visual tokens")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study.

    Attributes:
        model: the model.
        validation: questions on which divergence is measured.
        test: questions on which answers are scored as well.
        bases: the grids. A policy under which all visual tokens enter the LLM is the same over each base; name it once.
        greedy: numbers of visual tokens at which operations are removed one by one, over the first base.
        budgets: numbers of visual tokens n; the budget is what n tokens cost that take part in everything.
        samples: validation questions that operations are removed by.
        batch_size: questions at a time.
        max_new_tokens: longest answer, tokens.
        output: folder of the studies' folders.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    validation: Part
    test: Part
    bases: tuple[GridConfig, ...]
    greedy: tuple[int, ...] = ()
    budgets: tuple[int, ...]
    samples: int = 100
    batch_size: int = 100
    max_new_tokens: int = 16
    output: str = "runs/studies"

    def __post_init__(self) -> None:
        for key in ("samples", "batch_size", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}")
        names = [grid.pruner.name for grid in self.bases]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"bases must be different pruners, at least one, got {', '.join(names) or 'none'}")
        for key in ("greedy", "budgets"):
            for keep in getattr(self, key):
                Budget(keep_tokens=keep)
        if not self.budgets:
            raise ConfigError("budgets is an empty list; give at least one number of visual tokens")

    def to_mapping(self) -> dict[str, Any]:
        """Plain mappings and lists, as one would write them in YAML."""
        parts = {"validation": self.validation.to_mapping(), "test": self.test.to_mapping()}
        bases = [{"pruner": grid.pruner.to_mapping(), "tokens": list(grid.tokens)} for grid in self.bases]
        lists = {"greedy": list(self.greedy), "budgets": list(self.budgets)}
        return {**asdict(self), **parts, **lists, "bases": bases}


def load_study_config(path: Path | str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a configuration file; arguments and errors as of ``config.load_config``."""
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "model": parse_model,
        "validation": Part.of,
        "test": Part.of,
        "bases": _grids,
        "greedy": _numbers,
        "budgets": _numbers,
    }
    given = {k: parsers[k](v, k) if k in parsers else v for k, v in load_mapping(path, overrides).items()}
    return construct(StudyConfig, given, "config")


def _grids(value: Any, where: str) -> tuple[GridConfig, ...]:
    return tuple(_grid(item, f"{where}[{at}]") for at, item in enumerate(_numbers(value, where)))


def _grid(value: Any, where: str) -> GridConfig:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of pruner and tokens, got {value!r}")
    parsers: dict[str, Callable[[Any, str], Any]] = {"pruner": Part.of, "tokens": _numbers}
    given = {k: parsers[k](v, f"{where}.{k}") if k in parsers else v for k, v in value.items()}
    return construct(GridConfig, given, where)


def _numbers(value: Any, where: str) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
