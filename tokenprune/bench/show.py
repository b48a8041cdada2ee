"""What a bench found, for a person: a table of each batch size, and plain sentences on what was slower."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from tokenprune.bench.measure import Row
from tokenprune.bench.turn import Turn
from tokenprune.report import engineering

WIDTH = 160  # characters at most, however narrow the terminal is
SLOWER = 1.0  # of the unpruned time
COLUMNS = (
    "visual\ntokens",
    "vision\nms",
    "selection\nms",
    "prefill\nms",
    "a token\nms",
    "end to\nend, ms",
    "prefill\nFLOPs",
    "prefill\ntime",
    "end to\nend time",
    "KV\ncache",
    "peak\nmemory",
)


def chosen_prefill(turn: Turn) -> float:
    """Seconds of a turn from features to the first token."""
    return turn.selection + turn.prefill


def total(turn: Turn) -> float:
    """Seconds of the whole turn."""
    return turn.total


def table(rows: Sequence[Row]) -> Table:
    """A table of the rows of one batch size; the first prunes nothing, and FLOPs and times are relative to it."""
    columns = [Column("pruner", overflow="fold", max_width=24)]
    columns += [Column(name, justify="right", no_wrap=True) for name in COLUMNS]
    made = Table(
        *columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=f"batch size {rows[0].batch_size}"
    )
    for row in rows:
        made.add_row(row.cell.replace(" ", "\n"), *_cells(row, rows[0]))
    return made


def _cells(row: Row, unpruned: Row) -> list[str]:
    if row.size is None or not row.turns:
        return ["failed"]
    stages = (
        lambda turn: turn.vision,
        lambda turn: turn.selection,
        lambda turn: turn.prefill,
        lambda turn: turn.token,
    )
    ms = [_ms(row.spread(stage)["median"]) for stage in stages]
    whole = {name: _ms(value) for name, value in row.spread(total).items()}
    ratios = ["-"] * 3
    if unpruned.size and unpruned.turns:
        flops = row.size.prefill_flops / unpruned.size.prefill_flops
        ratios = [f"{flops:.3f}", f"{row.over(unpruned, chosen_prefill):.3f}", f"{row.over(unpruned, total):.3f}"]
    sizes = [f"{engineering(value)}B" for value in (row.size.cache_bytes, row.size.peak_bytes)]
    return [
        f"{row.size.tokens:g}",
        *ms,
        f"{whole['median']}\n{whole['p10']}-{whole['p90']}",
        *ratios,
        *sizes,
    ]


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """Sentences on which rows of a batch size failed, and which are slower than without pruning."""
    unpruned = rows[0]
    found = [f"{row.cell} failed at batch size {row.batch_size}: {row.error}" for row in rows if row.error]
    for row in rows[1:] if unpruned.turns else ():
        if row.turns and (ratio := row.over(unpruned, total)) > SLOWER:
            spent = 1e3 * row.spread(lambda turn: turn.selection)["median"]
            saved = 1e3 * (unpruned.spread(_llm)["median"] - row.spread(_llm)["median"])
            found.append(
                f"{row.cell} is slower than no pruning at batch size {row.batch_size}: {ratio:.2f} times the time. "
                f"Selection takes {spent:.3g} ms, and prefill is {saved:.3g} ms shorter."
            )
    return found


def _llm(turn: Turn) -> float:
    return turn.prefill


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table of a batch size, and the remarks on it."""
    made = table(rows)
    made.width = console.measure(made, options=console.options.update(max_width=WIDTH)).maximum
    console.print(made, crop=False)  # a narrow terminal breaks lines; numbers that are cut say nothing
    for text in remarks(rows):
        console.print(text, soft_wrap=True, markup=False)
