"""Which of two pruners of equal cost answers better: such pairs of a run, tested on the same questions.

Nothing is computed again; the answers are those of the run's ``samples.jsonl``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.core.errors import ConfigError, DataError, hint
from tokenprune.report.rows import Row
from tokenprune.report.significance import Paired, compare_seeds, holm
from tokenprune.sweeps.store import RunFolder, RunRecord

COSTS = {"flops": "llm_prefill_flops", "average_tokens": "average_tokens"}  # by the names of the option --by


class Outcomes(dict[str, dict[str, float]]):
    """Scores of answers, by cell and question.

    Attributes:
        units: what each question belongs to, by cell and question; of those alone that belong to something.
    """

    def __init__(self, cells: Iterable[str]) -> None:
        """Know nothing of some cells yet."""
        super().__init__({cell: {} for cell in cells})
        self.units: dict[str, dict[str, str]] = {cell: {} for cell in self}


@dataclass(frozen=True)
class Pair:
    """Two rows of about the same cost.

    Attributes:
        first: A in tables.
        second: B in tables.
        test: on the questions that both answered.
        holm: p corrected for all pairs that are shown together.
    """

    first: Row
    second: Row
    test: Paired
    holm: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which pairs are compared.

    Attributes:
        within: largest difference of cost, of the larger of the two.
        by: what cost is: ``flops`` of the LLM's prefill, or ``average_tokens``.
        only: regular expression that the labels of both contain.
        against: regular expression that the label of one contains; that one is B.

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

    def pairs(self, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
        """The pairs of finished rows that are compared, in the order of the rows."""
        chosen = [row for row in rows if re.search(self.only, row.label)]
        pairs = [pair for pair in itertools.combinations(chosen, 2) if self.equal(*pair)]
        if not self.against:
            return pairs
        turned = [pair if re.search(self.against, pair[1].label) else pair[::-1] for pair in pairs]
        return [(first, second) for first, second in turned if re.search(self.against, second.label)]

    def equal(self, first: Row, second: Row) -> bool:
        """Whether two rows are on the same questions and cost the same."""
        low, high = sorted(row.number(COSTS[self.by]) for row in (first, second))
        return first.section == second.section and high - low <= self.within * high


def compare(folder: RunFolder, choice: Choice) -> list[Pair]:
    """Test all pairs of cells of a run, each seed by itself.

    Args:
        folder: of the run.
        choice: which pairs.

    Raises:
        DataError: if there is no such folder, it holds no records, there is no such pair, or a cell's answers are
            missing.
    """
    if not folder.path.is_dir():
        raise DataError(f"there is no folder {str(folder.path)!r}")
    rows = [Row.of_record(record) for record in folder.records() if record.status == "ok"]
    if not rows:
        raise DataError(f"{folder.results.path} holds no finished records; run the experiment first")
    pairs = choice.pairs(rows)
    if not pairs:
        named = [f"whose labels contain {choice.only!r}"] if choice.only else []
        named += [f"one of which contains {choice.against!r}"] if choice.against else []
        chosen = " and ".join(named)
        within = f"within {100 * choice.within:g} % of each other's {choice.by.replace('_', ' ')}"
        raise DataError(f"{folder.results.path} has no two cells {f'{chosen} ' if chosen else ''}that are {within}")
    cells = {record.cell for row in itertools.chain(*pairs) for record in row.records}
    return compare_pairs(pairs, outcomes(folder, cells), folder)


def outcomes(folder: RunFolder, cells: Collection[str]) -> Outcomes:
    """How right each answer is, by cell and question; a large file need not fit into memory.

    Args:
        folder: of the run.
        cells: keys of the cells that are wanted.

    Raises:
        DataError: if the file is of another version.
    """
    found = Outcomes(cells)
    for line in folder.samples:
        if line.get("cell") in found:
            try:
                if line["correct"] is not None:  # else the task scores all answers together
                    found[line["cell"]][line["sample"]] = float(line["correct"])
                    if line.get("unit"):
                        found.units[line["cell"]][line["sample"]] = line["unit"]
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{folder.samples.path} is of another version; run the experiment again") from None
    return found


def compare_pairs(pairs: Sequence[tuple[Row, Row]], found: Outcomes, folder: RunFolder) -> list[Pair]:
    """Test pairs of rows that are shown together.

    Args:
        pairs: of finished rows.
        found: what ``outcomes`` gives for their cells.
        folder: of the run, for messages.

    Raises:
        DataError: see ``compare``.
    """
    for row in itertools.chain(*pairs):
        for record in row.records:
            _check(record, found[record.cell], folder)
    tests = [_test(first, second, found) for first, second in pairs]
    corrected = holm([test.p for test in tests])
    return [Pair(*pair, test, p) for pair, test, p in zip(pairs, tests, corrected, strict=True)]


def _check(record: RunRecord, found: Mapping[str, float], folder: RunFolder) -> None:
    needed = record.metrics.get("scored", record.metrics["questions"])
    if not needed:
        raise DataError(f"{record.label!r} has one score of all its answers, and none of each, so there are no pairs")
    if len(found) < needed:
        number = f"{len(found)} of {needed} answers"
        raise DataError(f"{folder.samples.path} holds {number} of {record.label!r}; they are needed to compare pairs")


def _test(first: Row, second: Row, found: Outcomes) -> Paired:
    questions = sorted(found[first.any.cell])
    lines: list[list[list[float]]] = [[], []]
    for row, into in zip((first, second), lines, strict=True):
        for record in row.records:
            if found[record.cell].keys() != set(questions):
                raise DataError(f"{first.label!r} and {second.label!r} did not answer the same questions")
            into.append([found[record.cell][question] for question in questions])
    units = found.units[first.any.cell]
    of_questions = [units.get(question, "") for question in questions] if units else None
    return compare_seeds(lines[0], lines[1], of_questions)
