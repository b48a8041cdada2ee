"""Rows of a bench, measured turn by turn in one process, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tokenprune.adapters.base import ModelAdapter
from tokenprune.bench.config import BenchConfig, CardConfig
from tokenprune.bench.turn import Prompts, Size, Turn, size, turn
from tokenprune.core.errors import ConfigError
from tokenprune.core.sample import Sample
from tokenprune.costs.memory import ran_out
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import Checkpoint, config_of
from tokenprune.engine.session import Session
from tokenprune.engine.untrained import untrained
from tokenprune.sweeps.build import Cell, build_checkpoint, build_task, cells_of
from tokenprune.sweeps.config import RunConfig
from tokenprune.sweeps.provenance import device_name, git_state, processor, versions


@dataclass(frozen=True)
class Row:
    """A cell at a batch size.

    Attributes:
        cell: its label and budget.
        pruner: name and options, as in a configuration.
        budget: as text; ``none`` if nothing is pruned.
        batch_size: prompts at a time.
        error: what went wrong; None if it ran.
        size: what it takes besides time.
        turns: in the order in which they ran; the unpruned row's go with them, one by one.
    """

    cell: str
    pruner: dict[str, Any]
    budget: str
    batch_size: int
    error: str | None = None
    size: Size | None = None
    turns: tuple[Turn, ...] = ()

    def spread(self, value: Callable[[Turn], float]) -> dict[str, float]:
        """Median, and the bounds of the middle 80 %, of a value of the turns."""
        values = [value(turn) for turn in self.turns]
        tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        return {"median": median(values), "p10": tenths[0], "p90": tenths[8]}

    def over(self, other: Row, value: Callable[[Turn], float]) -> float:
        """Median ratio of a value in this row's turns to the value in another row's."""
        return median(value(a) / value(b) for a, b in zip(self.turns, other.turns, strict=True))

    def to_mapping(self) -> dict[str, Any]:
        """The row as a mapping for a JSON file; times are seconds."""
        names = [f.name for f in dataclasses.fields(Turn)] if self.turns else []
        return {**dataclasses.asdict(self), "seconds": {name: self.spread(attrgetter(name)) for name in names}}


def bench(config: BenchConfig, console: Console) -> Iterator[list[Row]]:
    """Run a bench: yields the rows of a batch size when they are done; then they are in the file, too.

    Args:
        config: as loaded.
        console: shows progress.

    Raises:
        TokenPruneError: if something is wrong with the configuration, before the model loads; or it cannot be loaded.
    """
    checkpoint, asked = cells(config)
    samples = None if isinstance(config.model, CardConfig) else _samples(config)
    if samples is not None:
        checkpoint.check_samples(samples)
    output = Path(config.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
    except OSError as error:
        raise ConfigError(f"output {config.output!r} cannot be written: {error.strerror}") from None
    session = checkpoint.load()
    head = {"config": config.to_mapping(), **_facts(session.adapter)}
    rows: list[Row] = []
    with Progress(console=console) as progress:
        task = progress.add_task("bench", total=len(config.batch_sizes) * len(asked) * (config.repeats + 2))
        for batch_size in config.batch_sizes:
            prompts = _prompts(session, config, batch_size, samples)
            new = measure(session, prompts, asked, config, lambda: progress.advance(task))
            rows += new
            content = {**head, "rows": [row.to_mapping() for row in rows]}
            output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            yield new


def cells(config: BenchConfig) -> tuple[Checkpoint, tuple[Cell, ...]]:
    """The model of a bench, whose weights are not loaded, and the cells; the first cell prunes nothing.

    Raises:
        TokenPruneError: if something is wrong with either.
    """
    checkpoint = _checkpoint(config)
    names = ("task", "pruner", "baselines", "budget", "seed")
    return checkpoint, cells_of(RunConfig(**{name: getattr(config, name) for name in names}), checkpoint)


def measure(
    session: Session, prompts: Prompts, asked: Sequence[Cell], config: BenchConfig, done: Callable[[], None]
) -> list[Row]:
    """Measure all cells in turns on a batch; one that fails does not stop the others. ``done`` is called after each."""
    number = len(prompts.questions)
    rows = [Row(str(cell), cell.part.to_mapping(), str(cell.budget or "none"), number) for cell in asked]
    for index in range(config.repeats + 2):  # what it takes besides time, then a turn to warm up
        for at, cell in enumerate(asked):
            row = rows[at]
            if row.error is None:
                try:
                    if index == 0:
                        row = dataclasses.replace(row, size=size(session, prompts, cell))
                    else:
                        new = turn(session, prompts, cell, config.new_tokens)
                        row = dataclasses.replace(row, turns=(*row.turns, new) if index > 1 else ())
                except Exception as error:  # of a method, or memory
                    said = "out of memory" if ran_out(error) else f"{type(error).__name__}: {str(error).strip()}"
                    row = dataclasses.replace(row, error=said, turns=())
            rows[at] = row
            done()
    return rows


def _checkpoint(config: BenchConfig) -> Checkpoint:
    if isinstance(config.model, CardConfig):
        options = dataclasses.asdict(config.model)
        card = load_card(options.pop("card"))
        return untrained(card.name, config_of(card.config), **options)
    return build_checkpoint(config.model)


def _samples(config: BenchConfig) -> Sequence[Sample]:
    samples, most = build_task(config.task).samples(), max(config.batch_sizes)
    if len(samples) < most:
        raise ConfigError(f"task {config.task.name!r} has {len(samples)} questions, too few for a batch of {most}")
    return samples[:most]


def _prompts(session: Session, config: BenchConfig, rows: int, samples: Sequence[Sample] | None) -> Prompts:
    if samples is not None:
        prepared = session.prepare(samples[:rows])
        return Prompts(prepared.inputs, prepared.questions, samples[:rows])
    adapter = session.adapter
    model, one = adapter.model, adapter.nominal_inputs(config.text_tokens)
    placed = {key: x.to(adapter.device, model.dtype if x.is_floating_point() else None) for key, x in one.items()}
    return Prompts({key: torch.cat([x] * rows) for key, x in placed.items()}, ["What is this?"] * rows)


def _facts(adapter: ModelAdapter) -> dict[str, Any]:
    return {
        "device": device_name(adapter.device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": git_state(),
        "parameters": sum(weight.numel() for weight in adapter.model.parameters()),
    }
