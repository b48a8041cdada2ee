"""How far a sweep is: the state of each cell, and the work that is left to do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.engine.providers.evidence import check_samples
from tokenprune.sweeps.aggregate import Totals
from tokenprune.sweeps.build import Experiment, build_all
from tokenprune.sweeps.grid import Sweep
from tokenprune.sweeps.keys import Keyed, key_cells
from tokenprune.sweeps.launch.base import Batch, Job, Origin, Wanted
from tokenprune.sweeps.store import RunFolder, RunRecord
from tokenprune.tasks.base import Task


@dataclass(frozen=True)
class Group:
    """Cells on one model and task.

    Attributes:
        experiment: as built.
        samples: the questions.
        cells: with their keys.
    """

    experiment: Experiment
    samples: tuple[Sample, ...]
    cells: tuple[Keyed, ...]


def prepare(asked: Sweep) -> tuple[list[Group], RunFolder]:
    """Check a sweep without loading weights: its cells with their keys, and its folder, which need not be there yet.

    Raises:
        TokenPruneError: if something is wrong with configuration, data or checkpoint.
    """
    experiments = build_all(asked.runs, asked.names)
    config = experiments[0].config
    questions: dict[str, tuple[Sample, ...]] = {}
    asked_of: set[tuple[str, str]] = set()  # models and tasks that were checked
    groups = []
    for experiment in experiments:
        task = repr(experiment.config.task)
        questions[task] = questions.get(task) or _questions(experiment.task)
        if (experiment.model.path, task) not in asked_of:
            experiment.model.check_samples(questions[task])
            asked_of.add((experiment.model.path, task))
        for cell in experiment.cells:
            steps = cell.pruner.steps(experiment.model.spec)
            check_samples([step.selector for step in steps], questions[task])
        groups.append(Group(experiment, questions[task], tuple(key_cells(experiment, questions[task]))))
    return groups, RunFolder(Path(config.output) / (asked.name or asked.id(config)))


def _questions(task: Task) -> tuple[Sample, ...]:
    """The samples of a task; DataError if there is nothing in them to prune."""
    samples = tuple(task.samples())
    if not any(sample.turn.shape for sample in samples):
        name = type(task).__name__
        raise DataError(f"no question of {name} shows a picture or a video, so there is nothing to prune")
    return samples


@dataclass
class State:
    """A cell and what is known of it.

    Attributes:
        group: that it is of.
        keyed: the cell.
        record: None until it is finished.
        totals: of its answers, until it is finished.
        costs: metrics by name; None until they are measured.
        device: that measured; empty until then.
        error: traceback; None unless it failed.
        seconds: of answering, in this process.
        answered: questions, in this process.
        notes: for the record.
    """

    group: Group
    keyed: Keyed
    record: RunRecord | None = None
    totals: Totals = field(default_factory=Totals)
    costs: dict[str, Any] | None = None
    device: str = ""
    error: str | None = None
    seconds: float = 0.0
    answered: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the cell is answered and measured, or has failed."""
        answered = self.costs is not None and len(self.totals.samples) == len(self.group.samples)
        return answered or self.error is not None


def states(groups: Sequence[Group], folder: RunFolder, retry_failed: bool) -> dict[str, State]:
    """The states of all cells by key, with what the folder has of them.

    Raises:
        DataError: if a journal cannot be read.
    """
    found = {each.key: State(group, each) for group in groups for each in group.cells}
    for line in folder.results:
        if (state := found.get(line["cell"])) and not (retry_failed and line["status"] == "failed"):
            label = state.keyed.cell.label  # it may have been called otherwise among other cells
            state.record = dataclasses.replace(RunRecord.from_mapping(line), label=label)
    for line in folder.samples:
        state = found.get(line["cell"])
        if state and line["sample"] not in state.totals.samples:
            state.totals.add(line)
    for state in found.values():  # answers may have been lost since
        if state.record and state.record.status == "ok" and len(state.totals.samples) < len(state.group.samples):
            state.record = None
    return found


def blocks_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Samples that go through the model together, at most ``size`` of them, always the same ones.

    Those of a block show things of the same kinds (pictures, videos, nothing), and are about equally large and long:
    what is computed does not depend on what was before, and batches take about equally long.
    """

    def kinds(sample: Sample) -> list[str]:
        return sorted({kind for kind, *_ in sample.turn.shape})

    order = sorted(samples, key=lambda sample: (kinds(sample), sample.turn.shape, sample.turn.length))
    alike = [list(group) for _, group in itertools.groupby(order, key=kinds)]
    return [group[i : i + size] for group in alike for i in range(0, len(group), size)]


def job_of(group: Group, known: Mapping[str, State]) -> Job | None:
    """The work that is left to do for a group of cells; None if there is none.

    Args:
        group: cells on one model and task.
        known: all cells by key.
    """
    config = group.experiment.config
    missing = {each.key: known[each.key] for each in group.cells if known[each.key].record is None}
    if not missing:
        return None
    batches = []
    for block in blocks_of(group.samples, config.batch_size):
        ids = tuple(sample.id for sample in block)
        cells = tuple(key for key, state in missing.items() if not state.totals.samples >= {*ids})
        batches += [Batch(ids, cells)] if cells else []
    origin = group.cells[0].origin
    wanted = {key: state.keyed.cell for key, state in missing.items()}
    return Job(
        model=config.model,
        task=config.task,
        max_new_tokens=config.max_new_tokens or group.experiment.task.max_new_tokens,
        timing_repeats=config.timing_repeats,
        cells={key: Wanted(key, cell.label, cell.part, cell.budget) for key, cell in wanted.items()},
        batches=tuple(batches),
        measured=tuple(missing),
        origin=Origin(origin.model, origin.data, {key: state.keyed.origin.code for key, state in missing.items()}),
        imports=config.imports,
    )
