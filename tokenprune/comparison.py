"""Which of two pruners of equal cost answers better: all such pairs of a run, tested on the same questions.

Nothing is computed again; the answers are those of the run's ``samples.jsonl``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from tokenprune.errors import ConfigError, DataError, hint
from tokenprune.metrics.significance import Paired, compare_paired, holm
from tokenprune.record import RunFolder, RunRecord
from tokenprune.report import engineering, markdown

COSTS = {"flops": "llm_prefill_flops", "average_tokens": "average_tokens"}  # by the names of the option --by


@dataclass(frozen=True)
class Pair:
    """Two cells of about the same cost.

    Attributes:
        first: A in tables.
        second: B in tables.
        test: on the questions that both answered.
        holm: p corrected for all pairs that are shown together.
    """

    first: RunRecord
    second: RunRecord
    test: Paired
    holm: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which pairs are compared.

    Attributes:
        within: largest difference of cost, of the larger of the two.
        by: what cost is: ``flops`` of the LLM's prefill, or ``average_tokens``.
        only: regular expression that the labels of both cells contain.
        against: regular expression that the label of one cell contains; that cell is B.

    Raises:
        ConfigError: if a value cannot be.
    """

    within: float = 0.02
    by: str = "flops"
    only: str = ""
    against: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.within < 1:
            raise ConfigError(f"within must be at least 0 and below 1, got {self.within}")
        if self.by not in COSTS:
            raise ConfigError(f"by is {self.by!r}; {hint(self.by, COSTS)}")
        for name in ("only", "against"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ConfigError(f"{name} {getattr(self, name)!r} is no regular expression: {error}") from None

    def pairs(self, records: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
        """Those of some records, in their order."""
        chosen = [record for record in records if re.search(self.only, record.label)]
        pairs = [pair for pair in itertools.combinations(chosen, 2) if self._equal(*pair)]
        if not self.against:
            return pairs
        turned = [pair if re.search(self.against, pair[1].label) else pair[::-1] for pair in pairs]
        return [(first, second) for first, second in turned if re.search(self.against, second.label)]

    def _equal(self, first: RunRecord, second: RunRecord) -> bool:
        low, high = sorted(record.metrics[COSTS[self.by]] for record in (first, second))
        return bool(high - low <= self.within * high)


def compare(folder: RunFolder, choice: Choice) -> list[Pair]:
    """Test all pairs of a run.

    Args:
        folder: of the run.
        choice: which pairs.

    Raises:
        DataError: if there is no such folder, it holds no records, there is no such pair, or a cell's answers are
            missing or no plain right or wrong.
    """
    if not folder.path.is_dir():
        raise DataError(f"there is no folder {str(folder.path)!r}")
    records = [record for record in folder.records() if record.status == "ok"]
    if not records:
        raise DataError(f"{folder.results.path} holds no finished records; run the experiment first")
    pairs = choice.pairs(records)
    if not pairs:
        named = [f"whose labels contain {choice.only!r}"] if choice.only else []
        named += [f"one of which contains {choice.against!r}"] if choice.against else []
        chosen = " and ".join(named)
        within = f"within {100 * choice.within:g} % of each other's {choice.by.replace('_', ' ')}"
        raise DataError(f"{folder.results.path} has no two cells {f'{chosen} ' if chosen else ''}that are {within}")
    answers = folder.answers()
    outcomes = {r.cell: _outcomes(folder, r, answers.get(r.cell, {})) for r in itertools.chain(*pairs)}
    tests = [_test(first, second, outcomes) for first, second in pairs]
    corrected = holm([test.p for test in tests])
    return [Pair(*pair, test, p) for pair, test, p in zip(pairs, tests, corrected, strict=True)]


def _outcomes(folder: RunFolder, record: RunRecord, lines: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Whether each sample was answered rightly."""
    if len(lines) < record.metrics["questions"]:
        number = f"{len(lines)} of {record.metrics['questions']} answers"
        raise DataError(f"{folder.samples.path} holds {number} of {record.label!r}; they are needed to compare pairs")
    return {sample: float(line["correct"]) for sample, line in lines.items()}


def _test(first: RunRecord, second: RunRecord, outcomes: dict[str, dict[str, float]]) -> Paired:
    a, b = outcomes[first.cell], outcomes[second.cell]
    if a.keys() != b.keys():
        raise DataError(f"{first.label!r} and {second.label!r} did not answer the same questions")
    return compare_paired(list(a.values()), [b[sample] for sample in a])


def _name(record: RunRecord) -> str:
    return f"{record.label} @ {record.metrics['average_tokens']:.4g}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


COLUMNS: tuple[tuple[str, str, Callable[[Pair], str]], ...] = (
    ("A", "label, and visual tokens in a layer of the LLM, mean over its layers", lambda p: _name(p.first)),
    ("B", "likewise", lambda p: _name(p.second)),
    ("A %", "accuracy", lambda p: f"{100 * p.first.metrics['accuracy']:.1f}"),
    ("B %", "accuracy", lambda p: f"{100 * p.second.metrics['accuracy']:.1f}"),
    ("A - B", "difference of accuracies, points", lambda p: f"{100 * p.test.difference:+.1f}"),
    (
        "95 % interval",
        "of the difference, points; bootstrap over the questions, paired",
        lambda p: f"{100 * p.test.low:+.1f} to {100 * p.test.high:+.1f}",
    ),
    (
        "A : B",
        "questions that A alone and that B alone answers rightly",
        lambda p: f"{p.test.first_only} : {p.test.second_only}",
    ),
    ("p", "exact McNemar test, two-sided", lambda p: _p(p.test.p)),
    ("p Holm", "corrected for all rows of this table", lambda p: _p(p.holm)),
    ("FLOPs A", "of the decoder layers for one question", lambda p: _flops(p.first)),
    ("FLOPs B", "likewise", lambda p: _flops(p.second)),
)


def _flops(record: RunRecord) -> str:
    return engineering(record.metrics["llm_prefill_flops"])


def _rows(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[show(pair) for _, _, show in COLUMNS] for pair in pairs]


def comparison_table(pairs: Sequence[Pair]) -> Table:
    """The pairs for the terminal; the two labels are folded."""
    columns = [Column(header, overflow="fold", ratio=1) for header, *_ in COLUMNS[:2]]
    columns += [Column(header.replace(" ", "\n", 1), justify="right", no_wrap=True) for header, *_ in COLUMNS[2:]]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in _rows(pairs):
        table.add_row(*map(escape, row))
    return table


def write(pairs: Sequence[Pair], choice: Choice, path: Path) -> None:
    """Write the pairs as Markdown.

    Args:
        pairs: of one run, at least one.
        choice: by which they were chosen.
        path: file to write.

    Raises:
        DataError: if it cannot be written.
    """
    chosen = [f"--within {choice.within:g}", f"--by {choice.by}"]
    chosen += [f"--{name} '{value}'" for name in ("only", "against") if (value := getattr(choice, name))]
    sections = [
        f"# Pairs of equal cost, run {pairs[0].first.run}",
        f"{pairs[0].first.metrics['questions']} questions; {len(pairs)} pairs: `{' '.join(chosen)}`.",
        markdown([header for header, *_ in COLUMNS], _rows(pairs)),
        "\n".join(f"- **{header}**: {meaning}." for header, meaning, _ in COLUMNS if meaning != "likewise"),
    ]
    try:
        path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"comparison {str(path)!r} cannot be written: {error.strerror}") from None
