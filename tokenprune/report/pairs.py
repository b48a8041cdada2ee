"""Pairs of pruners of equal cost, tested: as a table of a report, for the terminal, and as a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column
from rich.table import Table as ConsoleTable

from tokenprune.core.errors import DataError
from tokenprune.report.comparison import Choice, Outcomes, Pair, compare_pairs
from tokenprune.report.document import Block, Heading, Items, Paragraph, Table
from tokenprune.report.markdown import markdown
from tokenprune.report.numbers import chance, engineering
from tokenprune.report.rows import Row, Section
from tokenprune.sweeps.store import RunFolder

MANY = 60  # pairs of a section up to which all are tested

COLUMNS: tuple[tuple[str, str, Callable[[Pair], str]], ...] = (
    ("A", "label, and visual tokens in a layer of the LLM, mean over its layers", lambda p: _name(p.first)),
    ("B", "", lambda p: _name(p.second)),
    ("A %", "accuracy", lambda p: _accuracy(p.first)),
    ("B %", "accuracy", lambda p: _accuracy(p.second)),
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
    ("p", "exact McNemar test, two-sided", lambda p: chance(p.test.p)),
    ("p Holm", "corrected for all rows of this table", lambda p: chance(p.holm)),
    ("FLOPs A", "of the decoder layers for one question", lambda p: _flops(p.first)),
    ("FLOPs B", "", lambda p: _flops(p.second)),
)
FLIPPED = {  # where scores are in between, or questions belong together
    "A %": "mean score",
    "B %": "mean score",
    "A - B": "difference of mean scores, points",
    "95 % interval": "of the difference, points; bootstrap over the questions or what they belong to, paired",
    "A : B": "questions that A and that B answers better",
    "p": "signs of the differences flipped, of all questions of a unit together, two-sided",
}
TESTED = "is the mean score of the questions, also where the task is known by another metric, such as an F1"
SEEDS = (
    "A row of several seeds has their mean accuracy, and its interval draws seeds anew besides questions. A : B and p "
    "are of the first seed of each, as McNemar's test knows right and wrong alone."
)


def _name(row: Row) -> str:
    return f"{row.label} @ {row.number('average_tokens'):.4g}"


def _accuracy(row: Row) -> str:
    return f"{100 * row.number('accuracy'):.1f}"


def _flops(row: Row) -> str:
    return engineering(row.number("llm_prefill_flops"))


def choose_pairs(section: Section, choice: Choice) -> tuple[list[tuple[Row, Row]], str]:
    """Choose the pairs of a section that a report tests, and how to say so.

    All pairs if there are not too many. Otherwise the pairs with ``random`` or with the pruner that is studied:
    that choice looks at names alone, not at answers, and keeps the correction from drowning what was asked.
    """
    pairs = [(a, b) for a, b in choice.pairs(section.done) if a.any.budget and b.any.budget]
    if len(pairs) <= MANY:
        return pairs, "all pairs"
    named = dict.fromkeys(name for name in ("random", section.studied) if name)
    kept = [(a, b) for a, b in pairs if a.label in named or b.label in named]
    return kept, f"of {len(pairs)} pairs those with {' or '.join(named)}; the command tokenprune compare tests others"


def section_pairs(
    folder: RunFolder, section: Section, found: Outcomes, choice: Choice
) -> tuple[list[Pair], list[Block]]:
    """The pairs of a section, and what a report says of them.

    Args:
        folder: of the run.
        section: of its records.
        found: outcomes of the section's cells.
        choice: which rows cost the same.
    """
    rows, which = choose_pairs(section, choice)
    if not rows:
        return [], []
    heading = Heading("Pairs of equal cost")
    try:
        pairs = compare_pairs(rows, found, folder)
    except DataError as error:
        return [], [heading, Paragraph(f"Not tested: {error}.".replace(f"{folder.path}/", ""))]
    cost = f"FLOPs within {100 * choice.within:g} % of each other"
    said = [f"{len(pairs)} comparisons on the same questions, {cost}: {which}."]
    if any(len(row.records) > 1 for pair in rows for row in pair):
        said.append(SEEDS)
    return pairs, [
        heading,
        Paragraph(" ".join(said)),
        table(pairs, f"Pairs of equal cost, {section.title}"),
        meanings(pairs),
    ]


def table(pairs: Sequence[Pair], caption: str) -> Table:
    """The pairs as a table of a report."""
    return Table(caption, [header for header, *_ in COLUMNS], _cells(pairs), words=2)


def meanings(pairs: Sequence[Pair]) -> Items:
    """What the columns of the table of pairs mean."""
    other = FLIPPED if any(pair.test.test != "mcnemar" for pair in pairs) else {}
    told = [(header, other.get(header, meaning)) for header, meaning, _ in COLUMNS if meaning]
    own = any(row.own_metric for pair in pairs for row in (pair.first, pair.second))
    return Items([*told, *([("tested", TESTED)] if own else [])])


def _cells(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[show(pair) for _, _, show in COLUMNS] for pair in pairs]


def console_table(pairs: Sequence[Pair]) -> ConsoleTable:
    """The pairs for the terminal; the two labels are folded."""
    columns = [Column(header, overflow="fold", ratio=1) for header, *_ in COLUMNS[:2]]
    columns += [Column(header.replace(" ", "\n", 1), justify="right", no_wrap=True) for header, *_ in COLUMNS[2:]]
    table = ConsoleTable(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in _cells(pairs):
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
    options = [f"--within {choice.within:g}", f"--by {choice.by}"]
    options += [f"--{name} '{value}'" for name in ("only", "against") if (value := getattr(choice, name))]
    record = pairs[0].first.any
    text = markdown(
        [
            Heading(f"Pairs of equal cost, run {record.run}", 1),
            Paragraph(f"{record.metrics['questions']} questions; {len(pairs)} pairs: {' '.join(options)}."),
            table(pairs, ""),
            meanings(pairs),
        ]
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"comparison {str(path)!r} cannot be written: {error.strerror}") from None
