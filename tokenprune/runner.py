"""A run: its cells one after another, each on the disk before the next begins, finished ones skipped."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tokenprune import provenance
from tokenprune.build import Cell, Experiment, build
from tokenprune.config import RunConfig
from tokenprune.evaluate import Evaluator, summarise
from tokenprune.metrics.retention import retention
from tokenprune.provenance import digest
from tokenprune.record import RunFolder, RunRecord, run_id
from tokenprune.tracking import start_tracking
from tokenprune.types import ModelSpec, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        folder: its files.
        records: one a cell, in the order of the configuration; earlier runs' included.
        samples: the questions.
    """

    folder: RunFolder
    records: tuple[RunRecord, ...]
    samples: tuple[Sample, ...]

    @property
    def failed(self) -> list[RunRecord]:
        """Cells that raised an error."""
        return [record for record in self.records if record.status == "failed"]


def run(config: RunConfig, *, fresh: bool = False, console: Console | None = None) -> Outcome:
    """Run all cells that are not finished.

    Args:
        config: as loaded.
        fresh: set aside what an earlier run left and compute everything anew.
        console: shows progress; None shows none.

    Raises:
        TokenPruneError: if something is wrong with configuration, data, results folder or checkpoint; nothing has been
            computed then. An error inside a cell is recorded instead, and the other cells go on.
    """
    experiment = build(config)
    samples = tuple(experiment.task.samples())
    folder = RunFolder.create(experiment.config, fresh=fresh)
    worker = _Worker(experiment, samples, folder)
    resolved = experiment.config.to_mapping()
    session = start_tracking(experiment.tracker, run_id(experiment.config), resolved, folder.path)
    records: list[RunRecord] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console or Console(quiet=True)) as progress:
            bar = progress.add_task("", total=len(experiment.cells) * len(samples))
            for index, cell in enumerate(experiment.cells):
                progress.update(bar, description=f"{cell.label} {cell.budget or ''}")
                record = worker.cell(cell, records[0] if records else None, lambda n: progress.advance(bar, n))
                progress.update(bar, completed=(index + 1) * len(samples))
                records.append(record)
                session.log(index, record.label, record.metrics)
    finally:
        session.finish()
    return Outcome(folder, tuple(records), samples)


def _classes(cell: Cell, spec: ModelSpec) -> set[type]:
    """The pruner's class, and those of its parts."""
    return {type(cell.pruner)} | {type(step.selector) for step in (cell.pruner.steps(spec) if cell.pruner else ())}


class _Worker:
    """Computes single cells on the loaded model, or finds them finished."""

    def __init__(self, experiment: Experiment, samples: Sequence[Sample], folder: RunFolder) -> None:
        self.config, self.task, self.samples, self.folder = experiment.config, experiment.task, samples, folder
        self.finished = {record.cell: record for record in folder.records() if record.status == "ok"}
        self.answered = folder.answers()
        self.adapter = experiment.model.load()
        self.evaluator = Evaluator(self.adapter, self.task, self.config.max_new_tokens)
        self.code = {
            cell.label: provenance.code_hash(type(self.task), *_classes(cell, self.adapter.spec))
            for cell in experiment.cells
        }
        self.origin = provenance.Provenance(
            code="",
            git=provenance.git_state(),
            versions=provenance.versions(),
            device=provenance.device_name(self.adapter.model.device),
            model=provenance.model_hash(self.adapter.model),
            data=provenance.data_hash(samples),
        )

    def cell(self, cell: Cell, unpruned: RunRecord | None, advance: Callable[[int], None]) -> RunRecord:
        """The record of a cell, computed unless an earlier run has it.

        Args:
            cell: the pruner and budget.
            unpruned: the record without pruning; None if this is it.
            advance: told of each number of questions answered.
        """
        origin = dataclasses.replace(self.origin, code=self.code[cell.label])
        run = run_id(self.config)
        what = json.dumps([cell.part.to_mapping(), str(cell.budget)], sort_keys=True)
        key = digest(run, what, origin.code, origin.model, origin.data)
        if key in self.finished:
            return self.finished[key]
        start, metrics, error = time.perf_counter(), dict[str, Any](), None
        try:
            metrics = self._compute(cell, key, advance)
            base = metrics if unpruned is None else unpruned.metrics
            metrics["retention"] = retention(metrics["accuracy"], base["accuracy"]) if base else None
        except Exception:  # whatever a method does wrong, the other cells go on
            metrics, error = {}, traceback.format_exc()
            log.error("%s %s failed: %s", cell.label, cell.budget or "", error.strip().rpartition("\n")[2])
        record = RunRecord(
            run=run,
            cell=key,
            label=cell.label,
            pruner=cell.part.to_mapping(),
            budget=cell.budget.to_mapping() if cell.budget else {},
            config=self.config.to_mapping(),
            provenance=origin,
            seed=self.config.seed,
            status="failed" if error else "ok",
            metrics=metrics,
            seconds=time.perf_counter() - start,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            error=error,
        )
        self.folder.results.append(record.to_mapping())
        return record

    def _compute(self, cell: Cell, key: str, advance: Callable[[int], None]) -> dict[str, Any]:
        lines = dict(self.answered.get(key, {}))
        left = [sample for sample in self.samples if sample.id not in lines]
        advance(len(lines))
        for start in range(0, len(left), self.config.batch_size):
            batch = left[start : start + self.config.batch_size]
            answered = [{"cell": key, **line} for line in self.evaluator.answer(cell, batch)]
            self.folder.samples.append(*answered)
            lines |= {line["sample"]: line for line in answered}
            advance(len(batch))
        costs = self.evaluator.measure(cell, self.samples, self.config.timing_repeats)
        quality = summarise(cell, list(lines.values()), self.adapter.spec)
        return {**quality, **costs}
