"""The commands that show results; imports wait as in ``cli``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenprune.core.errors import TokenPruneError

if TYPE_CHECKING:
    from tokenprune.core.sample import Sample
    from tokenprune.sweeps.store import RunRecord


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or sweep, such as runs/0123456789ab.")],
    difference: Annotated[
        tuple[str, str] | None, typer.Option(help="Two pruners, as tables call them, whose kept tokens are compared.")
    ] = None,
    within: Annotated[float, typer.Option(help="Largest difference of FLOPs of rows that are compared.")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; that of the run if not given.")] = None,
) -> None:
    """Make the report of a run or sweep again, from its records and answers."""
    from tokenprune import report
    from tokenprune.report.comparison import Choice
    from tokenprune.sweeps.store import RunFolder

    run, choice = RunFolder(folder), Choice(within=within)
    records = report.ordered_records(run)
    path = report.write(run, _samples(records), out=out, difference=difference, choice=choice)
    console = Console()
    console.print(report.console_table(records))
    console.print(f"report: {path}", soft_wrap=True, markup=False)


def _samples(records: Sequence[RunRecord]) -> list[Sample]:
    """The questions of all tasks; none, with a warning, of one whose data is not here."""
    from tokenprune.sweeps.build import build_task
    from tokenprune.sweeps.config import Part

    tasks = {json.dumps(record.config["task"], sort_keys=True): record.config["task"] for record in records}
    samples: list[Sample] = []
    for task in tasks.values():
        try:
            samples += build_task(Part.of(task, "task")).samples()
        except TokenPruneError as error:
            logging.getLogger("tokenprune").warning("no images of task %r: %s", task.get("name"), error)
    return samples


def compare_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/0123456789ab.")],
    within: Annotated[float, typer.Option(help="Largest difference of cost, of the larger of the two.")] = 0.02,
    by: Annotated[str, typer.Option(help="What cost is: flops or average_tokens.")] = "flops",
    only: Annotated[str, typer.Option(help="Regular expression that both labels contain.")] = "",
    against: Annotated[str, typer.Option(help="Regular expression that B's label contains.")] = "",
    out: Annotated[Path | None, typer.Option(help="Markdown file; comparison.md in the folder if not given.")] = None,
) -> None:
    """Test which of two pruners of equal cost answers better, for all such pairs of a run, on the same questions."""
    from tokenprune.report import comparison
    from tokenprune.report import pairs as shown
    from tokenprune.sweeps.store import RunFolder

    choice = comparison.Choice(within=within, by=by, only=only, against=against)
    pairs, path = comparison.compare(RunFolder(folder), choice), out or folder / "comparison.md"
    shown.write(pairs, choice, path)
    console = Console()
    console.print(shown.console_table(pairs))
    console.print(f"comparison: {path}", soft_wrap=True, markup=False)
