"""What papers print: scores of pruned and unpruned models, with their sources, as data.

One YAML file of ``tables/`` is one table of one paper; ``columns.yaml`` says what its columns are. Numbers are copied
from papers and project pages, none is computed here. A number may be compared with one of ours only if both are of one
protocol, see ``sweeps.protocols``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from tokenprune.core.errors import ConfigError, hint
from tokenprune.core.options import construct
from tokenprune.sweeps.protocols import check_protocol

FOLDER = Path(__file__).parent
BUDGETS = ("keep_tokens", "keep_ratio", "tflops", "flops_ratio")  # in what papers count


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of published tables: a benchmark, and how it is read.

    Attributes:
        task: what lmms-eval calls the benchmark.
        printed: what papers call it.
        metrics: of our records, summed, that read answers as the paper does; none is the task's own score.
        factor: from these metrics to what is printed; unused without ``metrics``.
        top: the most that can be.
        same_rows: whether lmms-eval's task has the rows that papers score.
    """

    task: str
    printed: str
    metrics: tuple[str, ...] = ()
    factor: float = 100.0
    top: float = 100.0
    same_rows: bool = True


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that somebody printed.

    Attributes:
        model: name of its card, such as ``llava-1.5-7b``.
        checkpoint: hub id of the model.
        protocol: set-up, see ``sweeps.protocols``; None if it is none of them, or not known.
        column: the benchmark.
        name: what the paper calls the method.
        method: name of our pruner; None if we have none that does this.
        options: that our pruner must have to do it.
        budget: in what the paper counts, one of ``BUDGETS``; empty if nothing is pruned.
        counts: what ``keep_tokens`` and ``keep_ratio`` count: the mean over the LLM's layers, what the method keeps, or
            unknown.
        value: as printed.
        paper: arXiv id, None if it is not known or there is none.
        source: table, page or repository.
        origin: who ran it: the method's authors (``own``), authors who compare with it (``rerun``), or it was copied
            from another paper (``copied``); ``second hand`` is one of the latter two, not known which.
        verified: whether it was read at its source, or at its authors'; False for what was passed on.
        note: what else one should know.
    """

    model: str
    checkpoint: str
    protocol: str | None
    column: Column
    name: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    counts: Literal["average", "kept", "unknown"] = "unknown"
    value: float
    paper: str | None
    source: str
    origin: Literal["own", "rerun", "copied", "second hand"]
    verified: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if len(self.budget) > 1 or any(key not in BUDGETS for key in self.budget):
            raise ConfigError(f"a published budget is one of {', '.join(BUDGETS)}; got {dict(self.budget)}")

    @property
    def cited(self) -> str:
        """The source in a few words, such as ``arXiv 2506.10967, Table 1``."""
        return f"arXiv {self.paper}, {self.source}" if self.paper else self.source

    def to_mapping(self) -> dict[str, Any]:
        """The number as plain values, for JSON."""
        plain = {key: value for key, value in vars(self).items() if key != "column"}
        own = {key: dict(value) for key, value in plain.items() if isinstance(value, Mapping)}
        return {**plain, **own, "task": self.column.task, "printed": self.column.printed, "top": self.column.top}


def published() -> tuple[Published, ...]:
    """All numbers, in the order of the files' names and their rows.

    Raises:
        ConfigError: if a file is not as it must be.
    """
    said = _read(FOLDER / "columns.yaml")
    columns = {name: construct(Column, value, f"columns.yaml: {name}") for name, value in said.items()}
    files = sorted((FOLDER / "tables").glob("*.yaml"))
    return tuple(entry for file in files for entry in _entries(file, columns))


def _read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def _entries(file: Path, columns: Mapping[str, Column]) -> Iterator[Published]:
    """The numbers of one file; what a row says replaces what the file says."""
    shared = _read(file)
    rows, names = shared.pop("rows"), shared.pop("columns")
    for row in rows:
        said = {**shared, **row}
        values = said.pop("values")
        budget = {key: said.pop(key) for key in BUDGETS if key in said}
        if len(values) != len(names):
            raise ConfigError(f"{file.name}: {row['name']!r} has {len(values)} values in {len(names)} columns")
        for name, value in zip(names, values, strict=True):
            if name not in columns:
                raise ConfigError(f"{file.name}: there is no column {name!r}; {hint(name, columns)}")
            if value is not None:
                given = {**said, "column": columns[name], "budget": budget, "value": value}
                yield construct(Published, given, file.name)


def find(
    *, model: str | None = None, task: str | None = None, method: str | None = None, budget: str | None = None
) -> list[Published]:
    """Numbers of a model, task, method or budget; what is None does not matter.

    Args:
        model: name of a card.
        task: of lmms-eval.
        method: name of our pruner, or what a paper calls it, in any case.
        budget: what ``keep_tokens``, ``keep_ratio`` and so on are: ``128``, ``0.25``, ``keep_tokens=128``.

    Raises:
        ConfigError: if there is no number of such a model, task, method or budget at all.
    """
    found: Sequence[Published] = published()
    names = {name for entry in found for name in _names(entry)}
    _check("model", model, {entry.model for entry in found})
    _check("task", task, {entry.column.task for entry in found})
    _check("method", method and method.lower(), names)
    _check("budget", budget, {text for entry in found for text in _budgets(entry)})
    return [
        entry
        for entry in found
        if model in (None, entry.model)
        and task in (None, entry.column.task)
        and (method is None or method.lower() in _names(entry))
        and (budget is None or budget in _budgets(entry))
    ]


def _check(what: str, given: str | None, known: set[str]) -> None:
    if given is not None and given not in known:
        shown = {name for name in known if "=" in name} or known  # a budget is named with its key
        raise ConfigError(f"there are no published numbers of {what} {given!r}; {hint(given, shown)}")


def _names(entry: Published) -> set[str]:
    return {name for name in (entry.method, entry.name.lower()) if name}


def _budgets(entry: Published) -> set[str]:
    return {text for key, value in entry.budget.items() for text in (f"{value:g}", f"{key}={value:g}")}
