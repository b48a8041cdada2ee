"""What a sweep would do: its cells, what is done of them, and how long the rest will take, as far as that is known."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tokenprune.sweeps.grid import Sweep
from tokenprune.sweeps.launch.base import LAUNCHERS
from tokenprune.sweeps.make_parts import make_part
from tokenprune.sweeps.progress import State, prepare, states
from tokenprune.sweeps.store import RunFolder

log = logging.getLogger(__name__)


def show(asked: Sweep, console: Console, *, retry_failed: bool = False) -> None:
    """Check a sweep as a run would, and print its cells and an estimate of time; nothing is loaded or written.

    Args:
        asked: as loaded.
        console: to print on.
        retry_failed: count failed cells as work.

    Raises:
        TokenPruneError: if something is wrong.
    """
    groups, folder = prepare(asked)
    config = groups[0].experiment.config
    make_part(config.launcher, LAUNCHERS, "launcher")[1].check()
    known = states(groups, folder, retry_failed)
    several = len(groups) > 1
    where = [Column("model", overflow="fold"), Column("task", overflow="fold")] if several else []
    columns = [
        *where,
        Column("pruner", overflow="fold"),
        Column("budget"),
        Column("state"),
        Column("cell", no_wrap=True),
    ]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for state in known.values():
        asked_of = state.keyed.asked
        names = [asked_of["model"]["path"] or asked_of["model"]["name"], asked_of["task"]["name"]] if several else []
        names += [state.keyed.cell.label, str(state.keyed.cell.budget or "all")]
        table.add_row(*map(escape, names), _progress(state), state.keyed.key)
    console.print(table)
    left = {key: len(s.group.samples) - len(s.totals.samples) for key, s in known.items() if s.record is None}
    console.print(
        f"{len(known)} cells of {len(asked.runs)} points, {len(known) - len(left)} of them finished; "
        f"{sum(left.values()):,} answers to come",
        soft_wrap=True,
    )
    time = _estimate({known[key].keyed.key: known[key] for key in left}, left, config.output)
    console.print(f"time: {time}", markup=False)


def _progress(state: State) -> str:
    if state.record:
        return "finished" if state.record.status == "ok" else "failed"
    done, total = len(state.totals.samples), len(state.group.samples)
    return f"{done} of {total} answers" if done else "to do"


def _estimate(cells: dict[str, State], left: dict[str, int], output: str) -> str:
    """How long the answers that are left will take, from records in the folders beside this one."""
    if not cells:
        return "none, all is done"
    found = _speeds(output)
    seconds = 0.0
    for key, state in cells.items():
        speeds = found.get(_place(state.keyed.asked))
        if not speeds:
            return "unknown until a cell of this model and task is finished in this output folder"
        own = speeds.get(state.keyed.cell.label)
        seconds += left[key] * fmean(own or [speed for several in speeds.values() for speed in several])
    return f"about {_words(seconds)}, at the speed of the records in {output!r}, one process"


def _speeds(output: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of an answer, by model and task and then by label."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for path in sorted(Path(output).glob("*/results.jsonl")):
        for record in RunFolder(path.parent).records():
            if record.answered:
                by_label = speeds.setdefault(_place(record.config), {})
                by_label.setdefault(record.label, []).append(record.seconds / record.answered)
    return speeds


def _place(asked: dict[str, Any]) -> str:
    return repr((asked["model"], asked["task"]["name"]))


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
