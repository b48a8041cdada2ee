"""The commands that compute cells; imports wait as in ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tokenprune.sweeps.grid import Sweep

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
    from tokenprune.sweeps.config import load_config
    from tokenprune.sweeps.grid import Sweep

    _run(Sweep((load_config(config, overrides or ()),)), fresh, wait, retry_failed)


def sweep_command(
    file: Annotated[Path, typer.Argument(help="YAML file: a run, and what is varied in it; see docs/sweeps.md.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="grid.budget.keep_tokens=[48,24] ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, print the cells and a time; no more.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 points.")] = False,
    launcher: Annotated[str | None, typer.Option(help="Where cells are computed; launcher.*= sets options.")] = None,
    cell: Annotated[str | None, typer.Option(help="Run this cell alone, in a folder inside the sweep's.")] = None,
    fresh: Fresh = False,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Run a grid of experiments in one folder. Images are encoded once for all cells; finished cells are skipped."""
    from tokenprune.sweeps.grid import load_sweep

    given = [] if launcher is None else [f"launcher.name={launcher}"]
    asked = load_sweep(file, [*given, *(overrides or ())], yes=yes)
    if dry_run:
        from tokenprune.sweeps.dry_run import show

        show(asked, Console(), retry_failed=retry_failed)
    else:
        _run(asked, fresh, wait, retry_failed, cell)


def _run(asked: Sweep, fresh: bool, wait: bool, retry_failed: bool, cell: str | None = None) -> None:
    """Run a sweep, and print and write its report; a cell by itself has none."""
    from tokenprune import report
    from tokenprune.sweeps import runner

    progress = Console(stderr=True)
    outcome = runner.sweep(asked, cell=cell, fresh=fresh, wait=wait, retry_failed=retry_failed, console=progress)
    if not outcome.records:  # another process has them
        return
    console = Console()
    console.print(report.console_table(outcome.records))
    if cell is None:
        console.print(f"report: {report.write(outcome.folder, outcome.samples)}", soft_wrap=True, markup=False)
        outcome.track()
    if outcome.failed:
        raise typer.Exit(FAILED_CELL)


def wandb_sync_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep that was tracked offline, such as runs/NAME.")],
) -> None:
    """Print the commands that upload what was tracked offline; nothing is sent."""
    from shlex import quote

    from tokenprune.sweeps.wandb_commands import offline_runs

    for path in offline_runs(folder):
        typer.echo(f"wandb sync {quote(str(path))}")


def wandb_sweep_command(
    file: Annotated[Path, typer.Argument(help="YAML file of a sweep; see docs/sweeps.md.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="grid.budget.keep_tokens=[48,24] ...")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 points.")] = False,
) -> None:
    """Print a W&B sweep, whose agents run the cells of this one; nothing is sent."""
    import yaml  # type: ignore[import-untyped]

    from tokenprune.sweeps.grid import load_sweep
    from tokenprune.sweeps.wandb_commands import agent_sweep

    given = overrides or []
    typer.echo(yaml.safe_dump(agent_sweep(load_sweep(file, given, yes=yes), file, given), sort_keys=False), nl=False)
