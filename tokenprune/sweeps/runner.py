"""Runs a sweep: what is not on the disk yet is computed, and each answer is on the disk as soon as it is known.

This process alone writes. What computes, a launcher's business, tells it by events; one that comes twice counts once.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import logging
import traceback
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenprune.core.errors import TokenPruneError
from tokenprune.sweeps.baseline_first import baseline_first
from tokenprune.sweeps.config import RunConfig
from tokenprune.sweeps.grid import Sweep
from tokenprune.sweeps.launch.base import LAUNCHERS, Answered, Event, Failed, Halved, Job, Measured
from tokenprune.sweeps.make_parts import make_part
from tokenprune.sweeps.merge_folders import merge_folders, select_cell, source_folders
from tokenprune.sweeps.outcome import Outcome
from tokenprune.sweeps.progress import Group, State, job_of, prepare, states
from tokenprune.sweeps.report_cells import report_cells
from tokenprune.sweeps.retention import retention
from tokenprune.sweeps.scores import scores_corpus, scores_of, scoring_of
from tokenprune.sweeps.store import RunFolder, RunRecord
from tokenprune.sweeps.tracking import Tracked, start_tracking

log = logging.getLogger(__name__)
UNCHANGED = "0 % of the answers differ from those without pruning: the method never engaged, or made no difference"


def run(config: RunConfig, **options: Any) -> Outcome:
    """Run all cells of one configuration that are not finished; options and errors are those of ``sweep``."""
    return sweep(Sweep((config,)), **options)


def sweep(
    asked: Sweep,
    *,
    cell: str | None = None,
    fresh: bool = False,
    wait: bool = False,
    retry_failed: bool = False,
    console: Console | None = None,
    told: Callable[[RunRecord], None] | None = None,
) -> Outcome:
    """Run all cells of a sweep that are not finished.

    Args:
        asked: as loaded.
        cell: key of the only cell to run, in a folder of its own; the sweep takes it later, see ``merge_folders``.
        fresh: set aside what an earlier run left and compute everything anew.
        wait: until another run that writes to the folder ends, instead of refusing.
        retry_failed: compute cells again that failed; otherwise they stay failed until their code changes.
        console: shows progress; None shows none.
        told: called with the record of each unpruned cell that is computed, as soon as it is; those of configurations
            with a protocol come before all other cells of their model.

    Raises:
        TokenPruneError: if something is wrong with configuration, data, results folder or checkpoint; nothing has been
            computed then. Or if the disk is full. An error inside a cell is recorded instead, and the others go on.
    """
    launcher = make_part(asked.runs[0].launcher, LAUNCHERS, "launcher")[1]
    groups, folder = launcher.load(lambda: prepare(asked))
    config, tracker, whole = groups[0].experiment.config, groups[0].experiment.tracker, folder.path.name
    launcher.check()
    tracker.check()
    if launcher.assist():
        return Outcome(folder, (), (), tracker)
    name = asked.id(config)
    if cell is not None:
        groups, folder = select_cell(groups, folder, cell)
    keys = [each.key for group in groups for each in group.cells]
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with folder.writing(asked.mapping or config.to_mapping(), fresh=fresh, wait=wait):
        merge_folders(folder, keys, source_folders(folder))
        session = start_tracking(tracker, whole, folder.path)
        try:
            with Progress(*columns, TimeRemainingColumn(), console=console or Console(quiet=True)) as progress:
                tracked = keys if cell is None else [cell]
                driver = _Driver(name, folder, groups, session, tracked, progress, retry_failed, told)
                with closing(launcher.run(driver.jobs())) as events:  # type: ignore[type-var]
                    driver.follow(events)
        finally:
            session.finish()
    tasks = {id(group.samples): group.samples for group in groups}  # models share their tasks' questions
    return Outcome(folder, tuple(driver.records()), tuple(itertools.chain(*tasks.values())), tracker)


class _Driver:
    """Writes down what the launcher tells."""

    def __init__(
        self,
        name: str,
        folder: RunFolder,
        groups: Sequence[Group],
        session: Tracked,
        tracked: Container[str],
        progress: Progress,
        retry_failed: bool,
        told: Callable[[RunRecord], None] | None,
    ) -> None:
        self.name, self.folder, self.groups, self.session, self.progress = name, folder, groups, session, progress
        self.tracked, self.told, self.states = tracked, told, states(groups, folder, retry_failed)
        done = [len(s.group.samples) if s.record else len(s.totals.samples) for s in self.states.values()]
        total = sum(len(state.group.samples) for state in self.states.values())
        self.bar = progress.add_task("loading", total=total, completed=sum(done))
        for group in groups:
            self._track(group)

    def records(self) -> Iterable[RunRecord]:
        """The records of all finished cells, in the order of the cells."""
        return (state.record for state in self.states.values() if state.record)

    def jobs(self) -> list[Job]:
        """The work that is left to do: a job for each group that is not finished, in two parts if it has a protocol."""
        jobs = [(group, job) for group in self.groups if (job := job_of(group, self.states))]
        plain = [job for group, job in jobs if not group.experiment.config.protocol]
        checked = [job for group, job in jobs if group.experiment.config.protocol]
        return [*baseline_first(checked, {group.cells[0].key for group in self.groups}), *plain]

    def follow(self, events: Iterable[Event]) -> None:
        """Write down events until there are no more.

        Raises:
            TokenPruneError: if the disk is full, or cells are left over.
        """
        for event in events:
            state = self.states[event.cell]
            if state.record is None and state.error is None:  # else a job ran twice, or beside one that failed
                self._take(state, event)
                if state.complete:
                    self._settle(state.group)
        left = sum(state.record is None for state in self.states.values())
        if left:
            raise TokenPruneError(f"{left} cells are not finished; the same command goes on from there")

    def _take(self, state: State, event: Event) -> None:
        cell = state.keyed.cell
        match event:
            case Answered():
                new = [line for line in event.lines if line["sample"] not in state.totals.samples]
                self.folder.samples.append(*({"cell": event.cell, **line} for line in new), sync=False)
                for line in new:
                    state.totals.add(line)
                state.seconds += event.seconds * len(new) / len(event.lines)
                state.answered += len(new)
                self.progress.update(self.bar, advance=len(new), description=str(cell))
            case Measured():
                state.costs, state.device = dict(event.costs), event.device
            case Failed():
                state.error = event.error
                log.error("%s failed: %s", cell, event.error.strip().rpartition("\n")[2])
            case Halved():
                state.notes.append(f"memory ran out; batches of {event.batch_size} questions from there on")
                log.warning("%s: %s", cell, state.notes[-1])

    def _settle(self, group: Group) -> None:
        """Write the records of complete cells; pruned ones wait for the unpruned cell, which they are compared to."""
        unpruned = self.states[group.cells[0].key]
        for each in group.cells:
            state = self.states[each.key]
            if state.record is None and state.complete and (state is unpruned or unpruned.record):
                state.record = self._record(state, unpruned)
                self.folder.samples.sync()
                self.folder.results.append(state.record.to_mapping())
                if state is unpruned and self.told:
                    self.told(state.record)
        self._track(group)

    def _metrics(self, state: State, unpruned: State) -> dict[str, Any]:
        """Metrics of a cell that is answered and measured."""
        task, key = state.group.experiment.task, state.keyed.key
        metrics = state.totals.metrics(state.keyed.cell, state.group.experiment.model.spec) | (state.costs or {})
        lines = self.folder.answers({key}).get(key, {}) if scores_corpus(task) else {}
        answers = {sample: line["answer"] for sample, line in lines.items()}
        metrics |= scores_of(task, state.group.samples, answers, metrics)
        base = metrics if state is unpruned else unpruned.record.metrics if unpruned.record else {}
        metrics["retention"] = retention(metrics["score"], base["score"]) if base else None
        metrics["changed"] = state.totals.changed(unpruned.totals) if base and state is not unpruned else None
        return metrics

    def _record(self, state: State, unpruned: State) -> RunRecord:
        cell, metrics, error = state.keyed.cell, dict[str, Any](), state.error
        if error is None:
            try:
                metrics = self._metrics(state, unpruned)
            except Exception:  # a pruner's plan may fail as anything of it, and so may a task's metrics
                error = traceback.format_exc()
                log.error("%s failed: %s", cell, error.strip().rpartition("\n")[2])
        checkpoint, protocol = state.group.experiment.model, state.group.experiment.config.protocol
        return RunRecord(
            run=self.name,
            cell=state.keyed.key,
            label=cell.label,
            pruner=cell.part.to_mapping(),
            budget=state.keyed.asked["budget"],
            config=state.keyed.asked | ({"protocol": protocol} if protocol else {}),
            provenance=dataclasses.replace(state.keyed.origin, device=state.device),
            seed=cell.seed,
            status="failed" if error else "ok",
            metrics=metrics,
            seconds=state.seconds,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            error=error,
            answered=state.answered,
            scoring=scoring_of(state.group.experiment.task),
            notes=[
                *state.notes,
                *checkpoint.stand_ins(cell.pruner.steps(checkpoint.spec)),
                *([UNCHANGED] if metrics.get("changed") == 0 else []),
            ],
        )

    def _track(self, group: Group) -> None:
        """Tell the tracker of a group whose cells are all finished."""
        if all(self.states[each.key].record for each in group.cells):
            report_cells([self.states[e.key] for e in group.cells if e.key in self.tracked], self.folder, self.session)
