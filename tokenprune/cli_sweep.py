"""The commands that compute cells; imports wait as in ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tokenprune.sweep import Sweep

FAILED_CELL = 1  # exit status
Fresh = Annotated[bool, typer.Option("--fresh", help="Set aside earlier results and compute all anew.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait while another run writes to the same folder.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Compute cells again that failed.")]


def run_command(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/quickstart.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="pruner.kernel=rbf budget.keep_tokens=24 ...")] = None,
    fresh: Fresh = False,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Run an experiment: a pruner and its baselines, each at each budget. Finished cells are skipped."""
    from tokenprune.config import load_config
    from tokenprune.sweep import Sweep

    _run(Sweep((load_config(config, overrides or ()),)), fresh, wait, retry_failed)


def sweep_command(
    file: Annotated[Path, typer.Argument(help="YAML file: a run, and what is varied in it; see docs/sweeps.md.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="grid.budget.keep_tokens=[48,24] ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, print the cells and a time; no more.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 points.")] = False,
    launcher: Annotated[str | None, typer.Option(help="Where cells are computed; launcher.*= sets options.")] = None,
    fresh: Fresh = False,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Run a grid of experiments in one folder. Images are encoded once for all cells; finished cells are skipped."""
    from tokenprune.sweep import load_sweep

    given = [f"launcher.name={launcher}"] if launcher else []
    asked = load_sweep(file, [*given, *(overrides or ())], yes=yes)
    if dry_run:
        from tokenprune.dry_run import show

        show(asked, Console(), retry_failed=retry_failed)
    else:
        _run(asked, fresh, wait, retry_failed)


def _run(asked: Sweep, fresh: bool, wait: bool, retry_failed: bool) -> None:
    """Run a sweep, and print and write its report."""
    from tokenprune import report, runner

    progress = Console(stderr=True)
    outcome = runner.sweep(asked, fresh=fresh, wait=wait, retry_failed=retry_failed, console=progress)
    console = Console()
    console.print(report.console_table(outcome.records))
    console.print(f"report: {report.write(outcome.folder, outcome.samples)}", soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(FAILED_CELL)
