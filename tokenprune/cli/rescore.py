"""The command that scores answers again; imports wait as in ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def rescore_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or sweep, such as runs/0123456789ab.")],
) -> None:
    """Score the answers of a run or sweep again, without a model; the old files are kept beside the new ones."""
    from tokenprune import report
    from tokenprune.sweeps.rescore import rescore
    from tokenprune.sweeps.store import RunFolder

    records = rescore(RunFolder(folder))
    console = Console()
    console.print(report.console_table(records))
    console.print(f"tables and pictures: tokenprune report {folder}", soft_wrap=True, markup=False)
