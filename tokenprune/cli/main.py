"""The command line. Imports wait until a command needs them, so that ``--help`` is quick."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperGroup

from tokenprune.cli import published as cli_published
from tokenprune.cli import report as cli_report
from tokenprune.cli import rescore as cli_rescore
from tokenprune.cli import sweep as cli_sweep
from tokenprune.core.errors import TokenPruneError
from tokenprune.version import __version__

if TYPE_CHECKING:
    from tokenprune.core.registry import Entry

USER_ERROR, INTERRUPTED = 2, 130  # exit statuses


class _Group(TyperGroup):
    """Turns a user's mistake into one sentence and exit status 2; a traceback is for the program's own mistakes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TokenPruneError as error:
            typer.echo(f"tokenprune: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            typer.echo(
                "tokenprune: interrupted; what is finished is kept, and the same command goes on from there", err=True
            )
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenprune {__version__}")
        raise typer.Exit


@app.callback()
def setup(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Visual token pruning for multimodal LLMs."""
    logger = logging.getLogger("tokenprune")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=Console(stderr=True), show_time=False, show_path=False))


app.command("run")(cli_sweep.run_command)
app.command("sweep")(cli_sweep.sweep_command)
app.command("wandb-sync")(cli_sweep.wandb_sync_command)
app.command("wandb-sweep")(cli_sweep.wandb_sweep_command)
app.command("report")(cli_report.report_command)
app.command("compare")(cli_report.compare_command)
app.command("rescore")(cli_rescore.rescore_command)
app.command("published")(cli_published.published_command)


@app.command("fit-policy")
def fit_command(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/fit_policy.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="budget.average_tokens=[48,24] samples=25 ...")] = None,
) -> None:
    """Find how deep attention and MLP should run for visual tokens, and how many should enter, under each budget."""
    from tokenprune.policies.draw import policy_table
    from tokenprune.policies.fit import fit, naive_ratio
    from tokenprune.policies.fit_config import load_fit_config

    console = Console()
    fitted = fit(load_fit_config(config, overrides or ()), console=Console(stderr=True))
    for path, policy in fitted.policies:
        console.print(policy_table(policy))
        console.print(f"policy: {path}", soft_wrap=True, markup=False)
    console.print(
        f"{fitted.runs} runs for the curves took {fitted.seconds:.1f} s, {100 * naive_ratio(fitted):.0f} % of the time "
        f"of as many full prefills ({fitted.runs * fitted.forward_seconds:.1f} s)",
        soft_wrap=True,
    )


@app.command("show-policy")
def show_policy_command(
    file: Annotated[Path, typer.Argument(help="A file that fit-policy wrote.")],
    out: Annotated[Path | None, typer.Option(help="PNG file to draw to; beside the file if not given.")] = None,
) -> None:
    """Print a policy as a table, and draw layers over operations and the measured curves."""
    from tokenprune.policies.draw import draw_policy, policy_table
    from tokenprune.pruners.dop.policy_file import load

    policy, picture = load(file), out or file.with_suffix(".png")
    console = Console()
    console.print(policy_table(policy))
    draw_policy(policy, policy.curves.layers, picture)
    console.print(f"picture: {picture}", soft_wrap=True, markup=False)


@app.command("flops")
def flops_command(
    overrides: Annotated[list[str] | None, typer.Argument(help="pruner.layer=3 budget.average_tokens=320 ...")] = None,
    model: Annotated[str | None, typer.Option(help="A model card, such as llava-next-7b.")] = None,
    config: Annotated[Path | None, typer.Option(help="Instead: config.json of a checkpoint, or its folder.")] = None,
    pruner: Annotated[str | None, typer.Option(help="A pruner's name; none leaves the model unpruned.")] = None,
    keep_tokens: Annotated[int | None, typer.Option(help="Visual tokens that stay; budget.*= for others.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Of the prompt, besides the visual tokens.")] = 40,
) -> None:
    """Print the FLOPs of a model in all published conventions, unpruned and pruned, from its sizes alone."""
    from tokenprune.bench.flops_request import request
    from tokenprune.bench.flops_table import console_table, lines

    short = {"pruner.name": pruner, "budget.keep_tokens": keep_tokens}
    given = [f"{key}={value}" for key, value in short.items() if value is not None]
    asked = request(model, config, [*given, *(overrides or ())], text_tokens)
    rows = lines(asked.spec, asked.cases, text_tokens)
    Console().print(console_table(asked.title, asked.note, rows, asked.cases))


@app.command("bench")
def bench_command(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/bench.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="batch_sizes=[1,8] model.dtype=bfloat16 ...")] = None,
) -> None:
    """Measure time and memory by stage, in turns with the unpruned model; also at a published model's sizes."""
    from tokenprune.bench.config import load_bench_config
    from tokenprune.bench.measure import bench
    from tokenprune.bench.show import show

    asked, console = load_bench_config(config, overrides or ()), Console()
    for rows in bench(asked, Console(stderr=True)):
        show(rows, console)
    console.print(f"results: {asked.output}", soft_wrap=True, markup=False)


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help="pruners, adapters, tasks, kernels or conditioning.")],
) -> None:
    """List what there is."""
    from tokenprune.cli.catalogue import broken_plugins, by_idea, entries, where_and_reads

    found = entries(kind)
    if kind == "pruners":
        table = _table(Column("name", no_wrap=True), "year", "where", "what it keeps")
        for idea, members in by_idea(found).items():
            table.add_row(f"[bold]{idea}[/]")
            for entry in members:
                table.add_row(entry.name, str(entry.year or ""), where_and_reads(entry)[0], escape(entry.summary))
        Console().print(table)
    else:
        _print_entries(found)
    for name, reason in broken_plugins(kind).items():
        typer.echo(f"plug-in {name!r} is ignored: {reason}", err=True)


def _print_entries(found: Sequence[Entry[Any]]) -> None:
    papers = any(entry.paper for entry in found)
    table = _table(Column("name", no_wrap=True), "summary", *([Column("paper", overflow="fold")] if papers else []))
    for entry in found:
        table.add_row(entry.name, escape(entry.summary), *([entry.paper or ""] if papers else []))
    Console().print(table)


@app.command("show")
def show_command(name: Annotated[str, typer.Argument(help="A name that list prints.")]) -> None:
    """Show what a pruner, adapter, task, kernel or conditioning does, and its options."""
    from tokenprune.cli.catalogue import find, options, where_and_reads

    console = Console()
    for kind, entry in find(name):
        console.print(f"[bold]{name}[/] ({kind}): {escape(entry.summary)}", soft_wrap=True)
        if entry.paper:
            console.print(entry.paper, soft_wrap=True)
        if kind == "pruners" and (reads := where_and_reads(entry)[1]):
            console.print(f"reads {reads}", soft_wrap=True)
        rows = options(entry.target)
        if rows:
            table = _table(Column("option", no_wrap=True), "type", "default", "meaning")
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False)


def main() -> None:
    """Entry point of the command ``tokenprune``."""
    app()
