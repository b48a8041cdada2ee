"""From a configuration to the things it names: all that can be wrong is found before any weights load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, ModelError, RegistryError, TokenPruneError, hint
from tokenprune.embedded.model import WEIGHTS
from tokenprune.engine.loading import Checkpoint, find_checkpoint
from tokenprune.pruners.base import PRUNERS, Pruner
from tokenprune.pruners.none import NoPruning
from tokenprune.sweeps.config import Part, RunConfig
from tokenprune.sweeps.labels import labels_of
from tokenprune.sweeps.make_parts import make_part, make_pruner
from tokenprune.sweeps.model_config import EMBEDDED, ModelConfig
from tokenprune.sweeps.tracking import TRACKERS, Tracker
from tokenprune.tasks.base import TASKS, Task


@dataclass(frozen=True)
class Cell:
    """One row of the result: a pruner at a budget.

    Attributes:
        label: the pruner's name, with the options that differ from their defaults; those of a composition with ``+``.
        part: its name and all its options.
        pruner: made.
        budget: the configuration's, or the pruner's own if its options fix one; None if nothing is pruned.
        seed: of the run that it is of.
    """

    label: str
    part: Part
    pruner: Pruner
    budget: Budget | None
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.label} {self.budget or ''}".rstrip()


@dataclass(frozen=True)
class Experiment:
    """Checked cells on one model and one task; no weights are loaded.

    Attributes:
        config: resolved: every option has its value; of the first run, if cells of several came together.
        cells: in the order of tables; the first prunes nothing.
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
    return build_all([config])[0]


def build_all(
    runs: Sequence[RunConfig], names: Sequence[str] = (), find: Callable[[ModelConfig], Checkpoint] | None = None
) -> tuple[Experiment, ...]:
    """Build several runs: those on one model and task become one experiment, in which equal cells are one.

    Args:
        runs: as loaded.
        names: what to call each in messages.
        find: the checkpoint of a model, such as one of which only sizes are known; None finds it on the disk or hub.

    Raises:
        TokenPruneError: see ``build``.
    """
    makers: dict[str, _Maker] = {}
    checkpoints: dict[ModelConfig, Checkpoint] = {}
    for index, config in enumerate(runs):
        with _name_errors(names[index] if names else ""):
            if config.model not in checkpoints:
                checkpoints[config.model] = (find or build_checkpoint)(config.model)
            task = make_part(config.task, TASKS, "task")
            config = with_length(config, task[1])
            shared = dataclasses.asdict(config.model), task[0].to_mapping()
            key = json.dumps([*shared, config.max_new_tokens, config.timing_repeats], sort_keys=True)
            if key not in makers:
                makers[key] = _Maker(config, checkpoints[config.model], *task)
            makers[key].add(config)
    return tuple(maker.experiment() for maker in makers.values())


def cells_of(config: RunConfig, checkpoint: Checkpoint) -> tuple[Cell, ...]:
    """The cells of a run on a model that is given; what the run says of a model does not count.

    Raises:
        TokenPruneError: see ``build``.
    """
    task = make_part(config.task, TASKS, "task")
    config = with_length(config, task[1])
    maker = _Maker(config, checkpoint, *task)
    maker.add(config)
    return maker.experiment().cells


def with_length(config: RunConfig, task: Task) -> RunConfig:
    """The configuration of a run, whose answers are as long as its task wants them unless it says otherwise."""
    if config.max_new_tokens is not None:
        return config
    return dataclasses.replace(config, max_new_tokens=task.max_new_tokens)


@contextmanager
def _name_errors(name: str) -> Iterator[None]:
    """Put a name, if there is one, before the message of an error that is raised inside."""
    try:
        yield
    except TokenPruneError as error:
        if not name:
            raise
        raise type(error)(f"{name}: {error}") from None


class _Maker:
    """Collects the cells of runs on one model and one task."""

    def __init__(self, config: RunConfig, checkpoint: Checkpoint, task_part: Part, task: Task) -> None:
        self.config, self.checkpoint, self.task_part, self.task = config, checkpoint, task_part, task
        self.tracking_part, self.tracker = make_part(config.tracking, TRACKERS, "tracking")
        self.first: tuple[Part, ...] = ()  # baselines and pruner of the first run
        self._made: dict[str, tuple[Part, Pruner]] = {}
        self._found: dict[str, tuple[Part, Pruner, int, list[Budget | None]]] = {}

    def add(self, config: RunConfig) -> None:
        """Add the cells of a run; ConfigError if it follows another protocol than the runs before."""
        if config.protocol != self.config.protocol:
            both = f"{self.config.protocol!r} and {config.protocol!r}"
            raise ConfigError(f"runs on one model and task follow one protocol, got {both}")
        pruners = [self._pruner(part, config.seed) for part in (*config.baselines, config.pruner)]
        self.first = self.first or tuple(part for part, _ in pruners)
        for part, pruner in sorted(pruners, key=lambda pair: not isinstance(pair[1], NoPruning)):
            fixed = pruner.budget is not None or isinstance(pruner, NoPruning)
            budgets = (pruner.budget,) if fixed else config.budget
            *_, known = self._found.setdefault(_text(part), (part, pruner, config.seed, []))
            for budget in budgets:
                if budget not in known:
                    _check(part, pruner, budget, self.checkpoint)
                    known.append(budget)

    def _pruner(self, part: Part, seed: int) -> tuple[Part, Pruner]:
        key = f"{seed} {_text(part)}"
        if key not in self._made:
            self._made[key] = make_pruner(part, seed)
        return self._made[key]

    def experiment(self) -> Experiment:
        """The experiment of all runs that were added; its configuration is that of the first."""
        labels = labels_of([part for part, *_ in self._found.values()])
        cells = tuple(
            Cell(label, part, pruner, budget, seed)
            for label, (part, pruner, seed, budgets) in zip(labels, self._found.values(), strict=True)
            for budget in budgets
        )
        *baselines, studied = self.first
        resolved = dataclasses.replace(
            self.config,
            baselines=tuple(baselines),
            pruner=studied,
            task=self.task_part,
            tracking=self.tracking_part,
        )
        return Experiment(resolved, cells, self.task, self.tracker, self.checkpoint)


def _text(part: Part) -> str:
    return json.dumps(part.to_mapping(), sort_keys=True)


def build_base(model: ModelConfig, part: Part) -> tuple[Checkpoint, dict[str, Any], Pruner]:
    """The checkpoint, and a pruner with all its options, checked against each other, for a fit over its choice.

    Raises:
        TokenPruneError: if a name, option or checkpoint is wrong, or they do not go together.
    """
    complete, pruner = make_part(part, PRUNERS, "pruner")
    checkpoint = build_checkpoint(model)
    checkpoint.check_steps(pruner.steps(checkpoint.spec))
    return checkpoint, complete.to_mapping(), pruner


def build_task(part: Part) -> Task:
    """Make a task alone, for a report on a run that is over."""
    return make_part(part, TASKS, "task")[1]


def build_checkpoint(config: ModelConfig) -> Checkpoint:
    """Find a checkpoint; the embedded model is one like any other, in a folder of the package.

    Raises:
        TokenPruneError: if there is none, or it cannot run as wanted.
    """
    if config.name != EMBEDDED and config.name not in ADAPTERS:
        allowed = hint(config.name, [EMBEDDED, *ADAPTERS.names()])
        raise RegistryError(f"unknown model {config.name!r}; {allowed}; see docs/add_an_adapter.md")
    found = find_checkpoint(
        str(WEIGHTS) if config.path is None else config.path,
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
        text_tower=config.text_tower,
        scope=config.scope,
        device_map=config.device_map,
        processor=config.processor,
        system=config.system,
        square=config.square == "pad",
    )
    if config.name != EMBEDDED and found.adapter is not ADAPTERS.get(config.name):
        raise ModelError(f"model {config.path!r} is not one that the adapter {config.name!r} serves; change model.name")
    return found


def _check(part: Part, pruner: Pruner, budget: Budget | None, checkpoint: Checkpoint) -> None:
    """Refuse layers that the model does not have, signals that nobody offers, and budgets that cannot be met."""
    if budget is None:
        return
    spec, adapter = checkpoint.spec, checkpoint.adapter
    try:
        checkpoint.check_steps(pruner.steps(spec))
        adapter.check_budget(pruner, spec, budget)
    except TokenPruneError as error:
        raise type(error)(f"pruner {labels_of([part])[0]!r}: {error}") from None
