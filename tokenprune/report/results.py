"""The tables of a report, from its rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column
from rich.table import Table as ConsoleTable

from tokenprune.report.comparison import Choice
from tokenprune.report.document import Block, Heading, Items, Paragraph, Table
from tokenprune.report.numbers import budget, engineering, percent
from tokenprune.report.rows import Row, Section, rows_of
from tokenprune.sweeps.store import RunRecord

BUDGETS = 8  # columns of the table of budgets, unless that many are of several pruners

# Header, how to read it, and the cell's text.
Columns = tuple[tuple[str, str, Callable[[Row], str]], ...]
COLUMNS: Columns = (
    (
        "visual tokens",
        "in a layer of the LLM, mean over its layers and the questions, of all that an image has",
        lambda r: f"{r.number('average_tokens'):.4g}/{r.number('visual_tokens'):.4g}",
    ),
    (
        "accuracy %",
        "share of right answers, or mean of their scores, ± its standard error over the questions",
        lambda r: _accuracy(r),
    ),
    (
        "of unpruned %",
        "accuracy, or the task's own score, relative to no pruning",
        lambda r: percent(r.mean("retention")),
    ),
    (
        "evidence kept %",
        "share of the visual tokens on the asked objects that were kept, mean over the questions that have any",
        lambda r: percent(r.mean("evidence_kept")),
    ),
    (
        "LLM prefill FLOPs",
        "of the decoder layers for one question, two per multiply-add, text included",
        lambda r: engineering(r.number("llm_prefill_flops")),
    ),
    (
        "prefill time",
        "selection and LLM prefill of a batch, over the unpruned LLM prefill that was measured turn by turn with it; "
        "without pruning it shows how exact the clock is",
        lambda r: "-" if (ratio := r.mean("prefill_time_ratio")) is None else f"{ratio:.2f}x",
    ),
    (
        "KV cache",
        "keys and values of one question after prefill",
        lambda r: f"{engineering(r.number('kv_cache_bytes'))}B",
    ),
)
SEEDS: Columns = (
    (
        "seeds sd",
        "number of seeds, and the standard deviation of their accuracies in points; all numbers are means over them",
        lambda r: f"{len(r.records)} ±{100 * sd:.1f}" if (sd := r.deviation("accuracy")) is not None else "-",
    ),
)


SCORE: Columns = (
    (
        "score",
        "the metric that the task is known by, in the scale of papers; it is what the next columns are relative to",
        lambda r: "-" if r.score is None else f"{r.score:.1f}",
    ),
)
UNPARSED: Columns = (
    (
        "unparsed %",
        "share of answers that the task could not read and counted by a rule",
        lambda r: percent(r.mean("unparsed")),
    ),
)


def _accuracy(row: Row) -> str:
    accuracy, error = row.mean("accuracy"), row.mean("accuracy_standard_error")
    return "-" if accuracy is None else f"{percent(accuracy)}±{percent(error)}"


def columns_of(rows: Sequence[Row]) -> Columns:
    """The columns of the table of results; those of scores, seeds and unparsed answers only if there is something."""
    score = SCORE if any(row.own_metric for row in rows) else ()
    seeds = SEEDS if any(len(row.records) > 1 for row in rows) else ()
    unparsed = UNPARSED if any(row.values("unparsed") for row in rows) else ()
    return (COLUMNS[0], *score, COLUMNS[1], *unparsed, *seeds, *COLUMNS[2:])


def console_table(records: Sequence[RunRecord]) -> ConsoleTable:
    """The result of a run for the terminal, in the order of the records; it fits into 80 columns."""
    rows = rows_of(records)
    seeded = any(len(row.records) > 1 for row in rows)
    whole = columns_of(rows)
    shown = whole[: len(COLUMNS) + seeded - max(0, len(whole) - len(COLUMNS))]  # the last are left out for others
    columns = [Column(head.replace(" ", "\n"), justify="right", no_wrap=True) for head, *_ in shown]
    shared = len({row.section for row in rows}) == 1
    table = ConsoleTable(
        Column("pruner", overflow="fold"), *columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        cells = _cells(row, shown)
        if not shared:
            cells[0] += f" ({row.any.config['model']['name']}, {_task(row)})"
        table.add_row(*map(escape, cells), end_section=after is None or row.label != after.label)
    return table


def _task(row: Row) -> str:
    return str(row.any.scoring.get("title") or row.any.config["task"]["name"])


def _cells(row: Row, columns: Columns) -> list[str]:
    if row.records:
        return [row.label, *(show(row) for _, _, show in columns)]
    return [row.label, f"{budget(row.any.budget)} failed", *["-"] * (len(columns) - 1)]


def results(section: Section) -> list[Block]:
    """The main table: a row a pruner and budget."""
    columns = columns_of(section.rows)
    header = ["pruner", *(head for head, *_ in columns)]
    table = Table(f"Results on {section.title}", header, [_cells(row, columns) for row in section.rows])
    return [table, Items([(head, meaning) for head, meaning, _ in columns])]


def retention(section: Section, choice: Choice) -> list[Block]:
    """Accuracy relative to no pruning: a row a pruner, a column a budget.

    Args:
        section: whose rows are shown.
        choice: tells which rows cost as much as ``random`` at the same budget; numbers of others are not shown.
    """
    pruned = [row for row in section.done if row.any.budget]
    number = Counter(budget(row.any.budget) for row in pruned)
    largest = {budget(row.any.budget): _largest_first(row) for row in pruned}
    columns = [n for n in sorted(number, key=largest.__getitem__) if number[n] > 1 or len(number) <= BUDGETS]
    shown = {(row.label, budget(row.any.budget)): row for row in pruned if budget(row.any.budget) in columns}
    if not shown:
        return []
    unequal = {
        (label, name)
        for (label, name), row in shown.items()
        if ("random", name) in shown and not choice.equal(row, shown["random", name])
    }
    labels = dict.fromkeys(label for label, _ in shown)
    cells = [
        [label, *("unequal" if (label, name) in unequal else _retained(shown.get((label, name))) for name in columns)]
        for label in labels
    ]
    said = [f"{len(number) - len(columns)} budgets that one pruner alone has are left out."]
    said = said if len(number) > len(columns) else []
    if unequal:
        said.append(
            f"Unequal: the FLOPs differ by more than {100 * choice.within:g} % from those of random at this budget. "
            "That is no comparison; tokenprune report --within allows more."
        )
    what = "Score" if any(row.own_metric for row in pruned) else "Accuracy"
    table = Table(f"{what} in % of that without pruning, {section.title}", ["pruner", *columns], cells)
    return [Heading("Retention by budget"), table, *map(Paragraph, said)]


def _largest_first(row: Row) -> tuple[tuple[str, ...], list[float]]:
    values = row.any.budget
    return tuple(values), [-value for value in values.values()]


def _retained(row: Row | None) -> str:
    return percent(row.mean("retention"), row.deviation("retention")) if row else "-"


def kinds(section: Section) -> list[Block]:
    """Accuracy by kind of question, if there are kinds."""
    names = sorted(
        {kind for row in section.done for record in row.records for kind in record.metrics["accuracy_by_kind"]}
    )
    if not names:
        return []
    by = "accuracy_by_kind"
    rows = [
        [
            row.label,
            f"{row.number('average_tokens'):.4g}",
            *(percent(row.mean(by, k), row.deviation(by, k)) for k in names),
        ]
        for row in section.done
    ]
    table = Table(f"Accuracy in % by kind of question, {section.title}", ["pruner", "visual tokens", *names], rows)
    return [Heading("Accuracy by kind of question"), table]


def notes(section: Section) -> list[Block]:
    """The notes of the records, such as that memory ran out."""
    records = [record for row in section.rows for record in (*row.records, *row.failed)]
    told = [(f"{each.label} {budget(each.budget)}", note.rstrip(".")) for each in records for note in each.notes]
    return [Heading("Notes"), Items(told)] if told else []
