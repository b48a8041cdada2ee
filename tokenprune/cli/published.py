"""The command that shows what papers print; imports wait as in ``cli``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from tokenprune.report.published import Published

Source = tuple[str, str, str]  # what is cited, protocol, note
RUN_BY = {"own": "authors", "rerun": "others", "copied": "copied", "second hand": "unknown"}


def published_command(
    model: Annotated[str | None, typer.Option(help="Name of a model card, such as llava-1.5-7b.")] = None,
    task: Annotated[str | None, typer.Option(help="Of lmms-eval, such as pope.")] = None,
    method: Annotated[str | None, typer.Option(help="A pruner, or what papers call it; none is unpruned.")] = None,
    budget: Annotated[str | None, typer.Option(help="Such as 128, 0.25 or keep_tokens=128.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is known of each number as JSON.")] = False,
) -> None:
    """Print the scores that papers print, with their sources."""
    from tokenprune.report.published import find

    found = find(model=model, task=task, method=method, budget=budget)
    if as_json:
        typer.echo(json.dumps([entry.to_mapping() for entry in found], indent=2))
        return
    console = Console()
    if not found:
        console.print("There is no such number; each option alone has some.")
        return
    sources = {source: number for number, source in enumerate(dict.fromkeys(map(_source, found)), 1)}
    for name in dict.fromkeys(entry.model for entry in found):
        console.print(_table(name, [entry for entry in found if entry.model == name], sources))
    for (cited, protocol, note), number in sources.items():
        end = f"; {note}" if note else ""
        console.print(f"{number}: {cited}; protocol {protocol}{end}", markup=False, highlight=False)
    if any(not entry.verified for entry in found):
        console.print("?: passed on by others, not read at its source", markup=False)


def _table(model: str, found: Sequence[Published], sources: Mapping[Source, int]) -> Table:
    """The numbers of a model as a table of at most 80 columns; sources are numbered."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    from tokenprune.report.numbers import published_budget

    wide = [Column("method", overflow="fold"), Column("benchmark", overflow="fold")]
    right = [Column(head, justify="right", no_wrap=True) for head in ("budget", "value", "run by", "source")]
    table = Table(*wide, *right, title=model, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for entry in found:
        value = f"{entry.value:g}{'' if entry.verified else '?'}"
        cells = [entry.name, entry.column.printed, published_budget(entry.budget), value]
        table.add_row(*map(escape, [*cells, RUN_BY[entry.origin], str(sources[_source(entry)])]))
    return table


def _source(entry: Published) -> Source:
    return entry.cited, entry.protocol or "none", entry.note
