"""From a configuration to the things it names: all that can be wrong is found before any weights load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tokenprune.adapters.base import ADAPTERS, ModelAdapter
from tokenprune.adapters.load import Checkpoint, find_checkpoint
from tokenprune.budget import Budget
from tokenprune.config import EMBEDDED, ModelConfig, Part, RunConfig
from tokenprune.embedded.model import WEIGHTS
from tokenprune.errors import ConfigError, ModelError, RegistryError, hint
from tokenprune.options import construct
from tokenprune.pruners.base import PRUNERS, Pruner
from tokenprune.registry import Registry
from tokenprune.tasks.base import TASKS, Task
from tokenprune.tracking import TRACKERS, Tracker

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One row of the result: a pruner at a budget.

    Attributes:
        label: the pruner's name, with the options that differ from their defaults.
        part: its name and all its options.
        pruner: None prunes nothing.
        budget: None if nothing is pruned.
    """

    label: str
    part: Part
    pruner: Pruner | None
    budget: Budget | None


@dataclass(frozen=True)
class Experiment:
    """A checked run that has not loaded any weights.

    Attributes:
        config: resolved: every option has its value.
        cells: in the order in which they run; the first prunes nothing.
        task: the questions.
        tracker: where records go besides the disk.
        model: sizes of the model, and how to load it.
    """

    config: RunConfig
    cells: tuple[Cell, ...]
    task: Task
    tracker: Tracker
    model: Checkpoint


def build(config: RunConfig) -> Experiment:
    """Look up all names, make pruners, task and tracker, and check them against the model's sizes and signals.

    Args:
        config: as loaded.

    Raises:
        TokenPruneError: if a name, option, budget, device or checkpoint is wrong.
    """
    baselines = [_pruner(part, config.seed) for part in config.baselines]
    studied = _pruner(config.pruner, config.seed)
    task_part, task = _make(config.task, TASKS, "task")
    tracking_part, tracker = _make(config.tracking, TRACKERS, "tracking")
    checkpoint = _checkpoint(config.model)
    pruners = sorted([*baselines, studied], key=lambda pair: pair[1] is not None)
    for part, pruner in pruners:
        _check_signals(part.name, pruner, checkpoint.adapter)
    for budget in config.budget:
        budget.resolve(checkpoint.spec.visual_tokens)
    resolved = dataclasses.replace(
        config,
        baselines=tuple(part for part, _ in baselines),
        pruner=studied[0],
        task=task_part,
        tracking=tracking_part,
    )
    return Experiment(resolved, _cells(pruners, config.budget), task, tracker, checkpoint)


def build_task(part: Part) -> Task:
    """Make a task alone, for a report on a run that is over."""
    return _make(part, TASKS, "task")[1]


def _make(part: Part, registry: Registry[T], where: str) -> tuple[Part, T]:
    """What a part names, and the part with the values of all its options."""
    target = registry.get(part.name)
    made = construct(target, part.options, f"{where} {part.name!r}")
    options = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}  # type: ignore[arg-type]
    return Part(part.name, options), made


def _pruner(part: Part, seed: int) -> tuple[Part, Pruner | None]:
    if part.name == "none":
        if part.options:
            raise ConfigError(f"pruner 'none' has no options, got {', '.join(map(str, part.options))}")
        return part, None
    if any(f.name == "seed" for f in dataclasses.fields(PRUNERS.get(part.name))):
        part = Part(part.name, {"seed": seed, **part.options})
    return _make(part, PRUNERS, "pruner")


def _checkpoint(config: ModelConfig) -> Checkpoint:
    """The embedded model is a checkpoint like any other, in a folder of the package."""
    if config.name != EMBEDDED and config.name not in ADAPTERS:
        allowed = hint(config.name, [EMBEDDED, *ADAPTERS.names()])
        raise RegistryError(f"unknown model {config.name!r}; {allowed}; see docs/add_an_adapter.md")
    found = find_checkpoint(
        config.path or str(WEIGHTS),
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
        text_tower=config.text_tower,
    )
    if config.name != EMBEDDED and found.adapter is not ADAPTERS.get(config.name):
        raise ModelError(f"model {config.path!r} is not one that the adapter {config.name!r} serves; change model.name")
    return found


def _check_signals(name: str, pruner: Pruner | None, adapter: type[ModelAdapter]) -> None:
    missing = pruner.requires - adapter.offers if pruner else None
    if missing:
        offered = ", ".join(sorted(adapter.offers)) or "none"
        raise ConfigError(
            f"pruner {name!r} needs the signals {', '.join(sorted(missing))}, which {adapter.__name__} lacks; "
            f"it offers {offered}"
        )


def _cells(pruners: Sequence[tuple[Part, Pruner | None]], budgets: Sequence[Budget]) -> tuple[Cell, ...]:
    cells = {}
    for part, pruner in pruners:
        label = _label(part)
        for budget in budgets if pruner else (None,):
            cells[label, budget] = Cell(label, part, pruner, budget)
    return tuple(cells.values())


def _label(part: Part) -> str:
    """The name, and the options that are not at their defaults."""
    if part.name == "none":
        return part.name
    defaults = {f.name: f.default for f in dataclasses.fields(PRUNERS.get(part.name))}
    return " ".join([part.name, *(f"{key}={value}" for key, value in part.options.items() if value != defaults[key])])
