"""Rows of a result: what one pruner did at one budget, over its seeds; by model and task, in an order of their own.

Nothing here depends on the order in which records were written.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenprune.core.errors import DataError
from tokenprune.sweeps.store import RunRecord

SEED = re.compile(r" seed=-?\d+")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
SHARED = ("model", "task", "max_new_tokens", "timing_repeats")  # what the cells of a section have in common
NEEDED = {
    *("questions", "accuracy", "accuracy_standard_error", "accuracy_by_kind", "retention", "visual_tokens"),
    *("average_tokens", "evidence_kept", "llm_prefill_flops", "kv_cache_bytes"),
}


@dataclass(frozen=True)
class Row:
    """Records that differ in nothing but their seeds.

    Attributes:
        label: the pruner's, without a seed.
        records: finished ones, by seed.
        failed: records of cells that raised an error.
    """

    label: str
    records: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...] = ()

    @classmethod
    def of_record(cls, record: RunRecord) -> Row:
        """Make a row of one finished record, with the record's label."""
        return cls(record.label, (record,))

    @property
    def any(self) -> RunRecord:
        """One record of the row: the first that finished, if one did."""
        return (*self.records, *self.failed)[0]

    @property
    def section(self) -> str:
        """What two rows must share to be compared: model, task and how they ran, as JSON."""
        return json.dumps([self.any.config.get(key) for key in SHARED], sort_keys=True)

    def values(self, metric: str, kind: str | None = None) -> list[float]:
        """Values of a metric, of each record that has it; of ``kind`` if the metric is by kind of question."""
        found = [record.metrics.get(metric) for record in self.records]
        if kind is not None:
            found = [(by_kind or {}).get(kind) for by_kind in found]
        return [value for value in found if value is not None]

    def mean(self, metric: str, kind: str | None = None) -> float | None:
        """Mean of a metric over the seeds; None if no record has it."""
        values = self.values(metric, kind)
        return statistics.fmean(values) if values else None

    @property
    def own_metric(self) -> bool:
        """Whether the task is known by another metric than the mean score of its questions."""
        return self.any.scoring.get("primary") in self.any.metrics.get("scores", {})

    @property
    def score(self) -> float | None:
        """The task's primary metric in the scale of papers, mean over the seeds; None if no record has it."""
        score = self.mean("score")
        return None if score is None else score * float(self.any.scoring.get("scale", 100.0))

    def number(self, metric: str) -> float:
        """Mean over the seeds of a metric that every finished record has."""
        return statistics.fmean(self.values(metric))

    def deviation(self, metric: str, kind: str | None = None) -> float | None:
        """Standard deviation of a metric over the seeds, of a sample; None for fewer than two."""
        values = self.values(metric, kind)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Section:
    """Rows on one model and task.

    Attributes:
        model, task: what they are called.
        detail: what tells the section from another of the same model and task; mostly empty.
        rows: in the order of tables; those without pruning first.
        studied: label of the pruner that the configuration studies, of several that with the fewest options; empty if
            no row is of it.
        measure: what the task calls its primary metric; empty for accuracy.
    """

    model: str
    task: str
    detail: str
    rows: tuple[Row, ...]
    studied: str
    measure: str = ""

    @property
    def title(self) -> str:
        """Title of the section, such as ``embedded, task scenes`` or ``llava, POPE F1``."""
        return f"{self.model}, {self.measure or f'task {self.task}'}{f' ({self.detail})' if self.detail else ''}"

    @property
    def scored(self) -> bool:
        """Whether each finished row has an accuracy."""
        return all(row.mean("accuracy") is not None for row in self.done)

    @property
    def done(self) -> list[Row]:
        """Rows with at least one finished record."""
        return [row for row in self.rows if row.records]


def rows_of(records: Iterable[RunRecord]) -> list[Row]:
    """Records by row, in the order in which rows first appear."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        shared = [record.config.get(key) for key in SHARED]
        key = json.dumps([_unseeded(record.pruner), record.budget, shared], sort_keys=True)
        found.setdefault(key, []).append(record)
    return [_row(group) for group in found.values()]


def sections_of(records: Iterable[RunRecord], config: Mapping[str, Any]) -> list[Section]:
    """Records by model and task, in an order that does not depend on theirs.

    Args:
        records: of a run or sweep.
        config: as in its ``config.yaml``: ``random`` comes first, then the baselines in that order, then the pruner
            that is studied.

    Raises:
        DataError: if a finished record lacks a metric.
    """
    records = list(records)
    for record in records:
        missing = sorted(NEEDED - record.metrics.keys())
        if record.status == "ok" and missing:
            lacks = f"the record of {record.label!r} has no {missing[0]!r}"
            raise DataError(f"{lacks}: it is of another version of tokenprune; run the experiment again")
    parts = ["random", *(config.get("baselines") or ()), config.get("pruner")]
    by_section: dict[str, list[Row]] = {}
    for row in rows_of(records):
        by_section.setdefault(row.section, []).append(row)
    sections = []
    for key, rows in by_section.items():
        ranked = sorted(((_rank(row, parts), row) for row in rows), key=lambda pair: _order(*pair))
        last = [row for rank, row in ranked if rank == len(parts) - 1 and row.label != "none"]
        studied = [row.label for row in last if _named_values(parts[-1], row.any.pruner)] or [row.label for row in last]
        plainest = min(studied, key=lambda label: label.count("="), default="")
        model, task = _names(json.loads(key))
        measure = str(rows[0].any.scoring.get("title", ""))
        sections.append(Section(model, task, "", tuple(row for _, row in ranked), plainest, measure))
    return sorted(_distinguish(sections), key=lambda section: natural(section.title))


def natural(text: str) -> list[Any]:
    """A key to sort by, under which 9 comes before 10."""
    return [float(piece) if at % 2 else piece for at, piece in enumerate(NUMBER.split(text))]


def _row(group: Sequence[RunRecord]) -> Row:
    ordered = sorted(group, key=lambda record: (natural(json.dumps(record.pruner, sort_keys=True)), record.cell))
    label = min(re.sub(r"\(([^\s()]+)\)", r"\1", SEED.sub("", record.label)) for record in ordered)
    done = tuple(record for record in ordered if record.status == "ok")
    return Row(label, done, tuple(record for record in ordered if record.status != "ok"))


def _unseeded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unseeded(item) for key, item in value.items() if key != "seed"}
    return [_unseeded(item) for item in value] if isinstance(value, list) else value


def _rank(row: Row, parts: Sequence[Any]) -> int:
    """Which part of the configuration a row is of: the one that names most of its options, of several the first."""
    fits = [(_named_values(part, row.any.pruner), index) for index, part in enumerate(parts)]
    best = max((said for said, _ in fits), default=0)
    return next(index for said, index in fits if said == best) if best else len(parts) - 1


def _named_values(part: Any, pruner: Any) -> int:
    """How many values of a pruner a configuration names; 0 if it names another pruner."""
    if isinstance(part, str) and isinstance(pruner, Mapping):
        part = {"name": part}
    if isinstance(part, list) and isinstance(pruner, Mapping):
        part = {"name": "compose", "pruners": part}
    if isinstance(part, Mapping) and isinstance(pruner, Mapping):
        said = [_named_values(value, pruner.get(key)) for key, value in part.items() if key != "seed"]
        return sum(said) if all(said) else 0
    if isinstance(part, list) and isinstance(pruner, list) and len(part) == len(pruner):
        said = [_named_values(*pair) for pair in zip(part, pruner, strict=True)]
        return 1 + sum(said) if all(said) else 0
    return int(part == pruner)


def _order(rank: int, row: Row) -> tuple[Any, ...]:
    spent = row.mean("average_tokens")
    budget = [-value for value in row.any.budget.values() if isinstance(value, int | float)]
    cost = budget if spent is None else [-spent]
    return row.label != "none", rank, natural(row.label), cost, json.dumps([row.any.pruner, row.any.budget])


def _names(shared: Sequence[Any]) -> tuple[str, str]:
    model, task = (part or {} for part in shared[:2])
    return str(model.get("path") or model.get("name", "?")), str(task.get("name", "?"))


def _distinguish(sections: Sequence[Section]) -> list[Section]:
    """Give sections of one model and task titles that differ, by the options that do."""
    number = Counter(section.title for section in sections)
    titled = []
    for section in sections:
        same = [_flat(json.loads(s.rows[0].section)) for s in sections if s.title == section.title]
        own = _flat(json.loads(section.rows[0].section))
        differing = [key for key in own if len({each.get(key) for each in same}) > 1]
        detail = ", ".join(f"{key}={own[key]}" for key in differing) if number[section.title] > 1 else ""
        titled.append(replace(section, detail=detail))
    return titled


def _flat(shared: Sequence[Any]) -> dict[str, str]:
    model, task, *others = shared
    flat = {f"model.{key}": str(value) for key, value in (model or {}).items()}
    flat |= {f"task.{key}": str(value) for key, value in (task or {}).items()}
    return flat | {key: str(value) for key, value in zip(SHARED[2:], others, strict=True)}
