"""From a configuration to the things it names: all that can be wrong is found before any weights load."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenprune.adapters.known import ADAPTERS
from tokenprune.adapters.load import Checkpoint, find_checkpoint
from tokenprune.budget import Budget
from tokenprune.config import EMBEDDED, ModelConfig, Part, RunConfig
from tokenprune.embedded.model import WEIGHTS
from tokenprune.errors import ConfigError, ModelError, RegistryError, TokenPruneError, hint
from tokenprune.options import construct
from tokenprune.pruners.base import PRUNERS, Pruner
from tokenprune.pruners.compose import Compose
from tokenprune.registry import Registry
from tokenprune.tasks.base import TASKS, Task
from tokenprune.tracking import TRACKERS, Tracker

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One row of the result: a pruner at a budget.

    Attributes:
        label: the pruner's name, with the options that differ from their defaults; those of a composition with ``+``.
        part: its name and all its options.
        pruner: None prunes nothing.
        budget: the configuration's, or the pruner's own if its options fix one; None if nothing is pruned.
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
    cells = _cells(pruners, config.budget)
    for cell in cells:
        _check(cell, checkpoint)
    resolved = dataclasses.replace(
        config,
        baselines=tuple(part for part, _ in baselines),
        pruner=studied[0],
        task=task_part,
        tracking=tracking_part,
    )
    return Experiment(resolved, cells, task, tracker, checkpoint)


def build_base(model: ModelConfig, part: Part) -> tuple[Checkpoint, dict[str, Any], Pruner]:
    """The checkpoint, and a pruner with all its options, checked against each other, for a fit over its choice.

    Raises:
        TokenPruneError: if a name, option or checkpoint is wrong, or they do not go together.
    """
    complete, pruner = _make(part, PRUNERS, "pruner")
    checkpoint = _checkpoint(model)
    checkpoint.adapter.check_steps(pruner.steps(checkpoint.spec))
    return checkpoint, complete.to_mapping(), pruner


def build_task(part: Part) -> Task:
    """Make a task alone, for a report on a run that is over."""
    return _make(part, TASKS, "task")[1]


def _make(part: Part, registry: Registry[T], where: str) -> tuple[Part, T]:
    """What a part names, and the part with the values of all its options."""
    target = registry.get(part.name)
    made = construct(target, part.options, f"{where} {part.name!r}")
    options = {f.name: _plain(getattr(made, f.name)) for f in dataclasses.fields(made) if f.init}  # type: ignore[arg-type]
    return Part(part.name, options), made


def _plain(value: Any) -> Any:
    """As YAML has it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _pruner(part: Part, seed: int) -> tuple[Part, Pruner | None]:
    if part.name == "none":
        if part.options:
            raise ConfigError(f"pruner 'none' has no options, got {', '.join(map(str, part.options))}")
        return part, None
    return _make(_seeded(part, seed), PRUNERS, "pruner")


def _seeded(part: Part, seed: int) -> Part:
    """The part with the run's seed wherever a pruner takes one and has none."""
    options = dict(part.options)
    if any(f.name == "seed" for f in dataclasses.fields(PRUNERS.get(part.name))):
        options = {"seed": seed, **options}
    if PRUNERS.get(part.name) is Compose and isinstance(options.get("pruners"), list | tuple):
        options["pruners"] = [_seeded(member, seed).to_mapping() for member in _members(options)]
    return Part(part.name, options)


def _members(options: Mapping[str, Any]) -> list[Part]:
    """Of a composition."""
    return [Part.of(member, "pruner") for member in options["pruners"]]


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
        scope=config.scope,
    )
    if config.name != EMBEDDED and found.adapter is not ADAPTERS.get(config.name):
        raise ModelError(f"model {config.path!r} is not one that the adapter {config.name!r} serves; change model.name")
    return found


def _check(cell: Cell, checkpoint: Checkpoint) -> None:
    """Refuse layers that the model does not have, signals that nobody offers, and budgets that cannot be met."""
    if cell.pruner is None or cell.budget is None:
        return
    spec, adapter = checkpoint.spec, checkpoint.adapter
    try:
        adapter.check_steps(cell.pruner.steps(spec))
        cell.pruner.schedule(spec, cell.budget, spec.visual_tokens)
    except TokenPruneError as error:
        raise type(error)(f"pruner {cell.label!r}: {error}") from None


def _cells(pruners: Sequence[tuple[Part, Pruner | None]], budgets: Sequence[Budget]) -> tuple[Cell, ...]:
    cells, labels = {}, _labels([part for part, _ in pruners])
    for label, (part, pruner) in zip(labels, pruners, strict=True):
        own = pruner.budget if pruner else None
        for budget in budgets if pruner and own is None else (own,):
            cells[label, budget] = Cell(label, part, pruner, budget)
    return tuple(cells.values())


def _labels(parts: Sequence[Part]) -> list[str]:
    """Of each part; in full where two that differ would be called the same."""
    brief = [_label(part) for part in parts]
    named: dict[str, Part] = {}
    shared = {label for label, part in zip(brief, parts, strict=True) if named.setdefault(label, part) != part}
    return [_label(part, full=True) if label in shared else label for label, part in zip(brief, parts, strict=True)]


def _label(part: Part, *, full: bool = False) -> str:
    """The name, and the options without which it would be another pruner; a composition has those of its pruners."""
    if part.name == "none":
        return part.name
    target = PRUNERS.get(part.name)
    if target is Compose:
        return "+".join(map(_label, _members(part.options)))
    fields = {f.name for f in dataclasses.fields(target)}
    needed = {key: value for key, value in part.options.items() if key in fields}
    made = construct(target, needed, part.name)
    for key in tuple(needed):
        rest = {name: value for name, value in needed.items() if name != key}
        with contextlib.suppress(TokenPruneError):
            needed = rest if construct(target, rest, part.name) == made else needed
    shown: Mapping[str, Any] = {k: v for k, v in part.options.items() if k in needed or k not in fields}
    shown = shown if full else made.shown(shown)
    return " ".join([part.name, *(f"{key}={_short(value)}" for key, value in shown.items())])


def _short(value: Any) -> str:
    """An option's value; a pruner inside another is called as it would be alone."""
    if not (isinstance(value, Mapping) and value.get("name") in PRUNERS):
        return str(value)
    label = _label(Part.of(value, "pruner"))
    return f"({label})" if " " in label else label
