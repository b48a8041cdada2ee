"""Scores of a run made again from the answers in its journal, without a model.

The files that were there are kept as ``results.1.jsonl`` and ``samples.1.jsonl`` (2, 3, ...).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]

from tokenprune.core.errors import DataError
from tokenprune.core.sample import Sample
from tokenprune.sweeps.aggregate import Totals
from tokenprune.sweeps.build import build_task
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.imports import import_files
from tokenprune.sweeps.journal import Journal
from tokenprune.sweeps.retention import retention
from tokenprune.sweeps.scores import score_answer, scores_corpus, scores_of, scoring_of
from tokenprune.sweeps.store import RunFolder, RunRecord
from tokenprune.tasks.base import Task

SHARED = ("model", "task", "max_new_tokens", "timing_repeats")  # what a cell and its unpruned one have in common


@dataclass
class _Cell:
    """A finished cell whose answers are scored again."""

    record: RunRecord
    task: Task
    samples: Mapping[str, Sample]
    totals: Totals = field(default_factory=Totals)
    answers: dict[str, str] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line of ``samples.jsonl`` with the scores of today; DataError if it answers another question."""
        sample = self.samples.get(line["sample"])
        if sample is None or sample.question != line["question"]:
            what = "no question" if sample is None else "another question"
            raise DataError(
                f"the task of {self.record.label!r} has {what} {line['sample']!r} today; nothing was changed"
            )
        scored = {**line, "truth": sample.answer, **score_answer(self.task, sample, line["answer"])}
        if line["sample"] not in self.totals.samples:
            self.totals.add(scored)
            if scores_corpus(self.task):
                self.answers[sample.id] = line["answer"]
        return scored

    def metrics(self) -> dict[str, Any]:
        """All metrics of the record, those of scores made again; DataError if answers are missing."""
        if len(self.totals.samples) < self.record.metrics["questions"]:
            number = f"{len(self.totals.samples)} of {self.record.metrics['questions']} answers"
            raise DataError(f"the journal holds {number} of {self.record.label!r}; nothing was changed")
        metrics = self.record.metrics | self.totals.scores()
        return metrics | scores_of(self.task, list(self.samples.values()), self.answers, metrics)


def rescore(folder: RunFolder) -> list[RunRecord]:
    """Score all answers of finished cells again; sizes, costs and kept tokens stay as they are.

    Args:
        folder: of a run or sweep.

    Returns:
        The records, as they are on the disk now; failed ones as they were.

    Raises:
        DataError: if there is no such folder, it holds no finished record, a task's questions are others today, or an
            answer is missing. The files are as they were then.
    """
    if not folder.path.is_dir():
        raise DataError(f"there is no folder {str(folder.path)!r}")
    config = _config_of(folder)
    import_files(config.get("imports") or ())
    records = folder.records()
    cells = _cells(records)
    if not cells:
        raise DataError(f"{folder.results.path} holds no finished records; run the experiment first")
    with folder.writing(config):
        new = Journal(folder.path / "samples.new.jsonl")
        new.path.unlink(missing_ok=True)
        try:
            for line in folder.samples:
                cell = cells.get(line["cell"])
                new.append(cell.take(line) if cell else line, sync=False)
            made = _records(records, cells)
            new.sync()
            folder.replace(new, [record.to_mapping() for record in made])
        finally:
            new.path.unlink(missing_ok=True)
    return made


def _config_of(folder: RunFolder) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load((folder.path / "config.yaml").read_text()))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise DataError(f"{str(folder.path / 'config.yaml')!r} cannot be read; is this the folder of a run?") from None


def _cells(records: Sequence[RunRecord]) -> dict[str, _Cell]:
    """Finished cells by key; of each task the questions are made once."""
    tasks: dict[str, tuple[Task, dict[str, Sample]]] = {}
    cells = {}
    for record in records:
        if record.status == "ok":
            asked = record.config["task"]
            name = json.dumps(asked, sort_keys=True)
            if name not in tasks:
                task = build_task(Part.of(asked, "task"))
                tasks[name] = task, {sample.id: sample for sample in task.samples()}
            cells[record.cell] = _Cell(record, *tasks[name])
    return cells


def _records(records: Sequence[RunRecord], cells: Mapping[str, _Cell]) -> list[RunRecord]:
    """The records with their scores made again, relative to the new scores of the unpruned cells."""
    metrics = {key: cell.metrics() for key, cell in cells.items()}
    unpruned = {
        _shared(record): metrics[record.cell]["score"]
        for record in records
        if record.cell in metrics and record.pruner["name"] == "none"
    }
    made = []
    for record in records:
        if record.cell in metrics:
            own = metrics[record.cell]
            own["retention"] = retention(own["score"], unpruned.get(_shared(record)))
            scoring = scoring_of(cells[record.cell].task)
            made.append(dataclasses.replace(record, metrics=own, scoring=scoring))
        else:
            made.append(record)
    return made


def _shared(record: RunRecord) -> str:
    return json.dumps([record.config.get(key) for key in SHARED], sort_keys=True)
