"""Fit depth-wise policies: measure curves, minimise their sum under each budget, measure the best few jointly.

The measurements are in a journal, batch after batch, so that a fit that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenprune import provenance
from tokenprune.adapters.base import ModelAdapter
from tokenprune.budget import Budget
from tokenprune.build import build_base, build_task
from tokenprune.divergence import Batch, Objective, Varied, early_signals, measure
from tokenprune.errors import DataError
from tokenprune.fit_config import FitConfig
from tokenprune.layer_timing import time_layers
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop import DOP
from tokenprune.record import Journal
from tokenprune.search import cost as costs
from tokenprune.search import policy, policy_file
from tokenprune.search.curves import Curves
from tokenprune.search.latency import LatencyModel
from tokenprune.search.solve import Candidate, solve
from tokenprune.types import ModelSpec, Sample


@dataclass(frozen=True)
class Fitted:
    """What a fit left.

    Attributes:
        policies: path and policy for each budget.
        runs: policies that were measured for the curves, without the unpruned model.
        seconds: that they took, with the unpruned forward.
        forward_seconds: of the unpruned forwards; ``runs`` times this is what as many full prefills take.
    """

    policies: list[tuple[Path, policy.Policy]]
    runs: int
    seconds: float
    forward_seconds: float


def fit(config: FitConfig, console: Console | None = None) -> Fitted:
    """Fit a policy for each budget.

    Args:
        config: as loaded.
        console: shows progress; None shows none.

    Raises:
        TokenPruneError: if something is wrong with configuration, data, results folder or checkpoint, or a budget
            cannot be met.
    """
    checkpoint, base_part, base = build_base(config.model, config.pruner)
    samples = build_task(config.task).samples()[: config.samples]
    objective = Objective(
        teacher_forced=config.positions == "teacher_forced",
        reverse=config.direction == "reverse",
        update_only=config.attention == "update_only",
        max_new_tokens=config.max_new_tokens,
    )
    points = grid(checkpoint.spec, config.points, query=config.query, update_only=objective.update_only)
    folder = _folder(config)
    adapter = checkpoint.load()
    origin = policy.Origin(
        model=config.model.name,
        path=config.model.path,
        weights=provenance.model_hash(adapter.model),
        data=provenance.data_hash(samples),
        code=provenance.code_hash(DOP, *_classes(base, adapter.spec)),
    )
    lines = _measure_all(adapter, samples, objective, base, points, origin, config, folder, console)
    curves = _curves(adapter.spec, points, lines, len(samples), update_only=objective.update_only)
    text = round(sum(line["text_tokens"] for line in lines) / len(samples))
    latency = time_layers(adapter, text) if config.kind == "milliseconds" else None
    found = solve(curves, _cost(config, adapter.spec, text, latency), config.values, top=config.top)
    measured = _jointly(adapter, samples, objective, base, found, config, console)
    policies = []
    for value, candidates in zip(config.values, measured, strict=True):
        fitted = policy.Policy(
            origin=origin,
            base=base_part,
            objective=policy.Objective(
                samples=len(samples), positions=config.positions, direction=config.direction, attention=config.attention
            ),
            curves=curves,
            budget=policy.Limit(kind=config.kind, value=float(value), text_tokens=text, latency=latency),
            chosen=min(candidates, key=lambda candidate: candidate.measured or 0.0),
            candidates=tuple(candidates),
        )
        path = folder / f"{config.kind}_{value:g}.yaml"
        policy_file.save(fitted, path)
        policies.append((path, fitted))
    seconds, forward = (sum(line[name] for line in lines) for name in ("seconds", "forward_seconds"))
    return Fitted(policies, len(points), seconds, forward)


def grid(spec: ModelSpec, points: int, *, query: bool, update_only: bool) -> list[Varied]:
    """What is measured: depths at equal steps, and numbers of visual tokens at equal ratios from an eighteenth on."""
    layers, total = spec.llm.layers, spec.visual_tokens
    ends = {"attention": (1 - update_only, layers - 1 - update_only), "mlp": (0, layers - 2)}
    if query:
        ends["query"] = (0, layers - 2)
    depths = [
        (name, value)
        for name, (first, last) in ends.items()
        for value in sorted({int(x) for x in np.linspace(first, last, points).round()})
    ]
    sizes = np.geomspace(max(1, total / 18), 0.85 * total, points)
    return [*depths, *(("tokens", value) for value in sorted({int(x) for x in sizes.round()}))]


def _folder(config: FitConfig) -> Path:
    mapping = config.to_mapping()
    relevant = {key: value for key, value in mapping.items() if key not in ("output", "budget", "top")}
    folder = Path(config.output) / provenance.digest(json.dumps(relevant, sort_keys=True))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be made: {error.strerror}") from None
    return folder


def _measure_all(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    objective: Objective,
    base: Pruner,
    points: Sequence[Varied],
    origin: policy.Origin,
    config: FitConfig,
    folder: Path,
    console: Console | None,
) -> list[dict[str, Any]]:
    """One line for each batch, from the journal or measured now."""
    journal, key = Journal(folder / "measurements.jsonl"), [origin.weights, origin.data, origin.code]
    journal.open()
    known = {line["batch"]: line for line in journal.read() if line.get("origin") == key}
    starts = range(0, len(samples), config.batch_size)
    with _progress(console) as progress:
        bar = progress.add_task("measuring curves", total=len(starts), completed=len(known))
        for start in starts:
            if start in known:
                continue
            result = measure(adapter, samples[start : start + config.batch_size], objective, base, points)
            line = dataclasses.asdict(result)
            line["divergence"] = [[name, value, kl] for (name, value), kl in result.divergence.items()]
            known[start] = {"batch": start, "origin": key, **line}
            journal.append(known[start])
            progress.advance(bar)
    return [known[start] for start in starts]


def _jointly(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    objective: Objective,
    base: Pruner,
    found: Sequence[Sequence[Candidate]],
    config: FitConfig,
    console: Console | None,
) -> list[list[Candidate]]:
    """The candidates with their true divergence."""
    depths = {candidate.depths for candidates in found for candidate in candidates}
    totals = dict.fromkeys(depths, 0.0)
    early = early_signals(adapter, base)
    with _progress(console) as progress:
        starts = range(0, len(samples), config.batch_size)
        bar = progress.add_task("measuring the best jointly", total=len(starts))
        for start in starts:
            batch = Batch(adapter, samples[start : start + config.batch_size], objective, early)
            for one in depths:
                pruner = DOP.of(base, one)
                totals[one] += float(batch.pruned(pruner, Budget(keep_tokens=one.keep)).sum())
            progress.advance(bar)
    return [
        [dataclasses.replace(one, measured=totals[one.depths] / len(samples)) for one in candidates]
        for candidates in found
    ]


def _curves(
    spec: ModelSpec, points: Sequence[Varied], lines: Sequence[dict[str, Any]], samples: int, *, update_only: bool
) -> Curves:
    totals: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value, divergence in line["divergence"]:
            values = totals.setdefault(name, {})
            values[value] = values.get(value, 0.0) + divergence / samples
    return Curves.of(
        spec.llm.layers,
        spec.visual_tokens,
        attention=totals["attention"],
        mlp=totals["mlp"],
        tokens=totals["tokens"],
        query=totals.get("query"),
        update_only=update_only,
    )


def _cost(config: FitConfig, spec: ModelSpec, text: int, latency: LatencyModel | None) -> costs.Cost:
    if config.kind == "flops":
        return costs.flops(spec, text)
    return costs.average_tokens() if latency is None else costs.milliseconds(latency, text)


def _classes(base: Pruner, spec: ModelSpec) -> set[type]:
    return {type(base), *(type(step.selector) for step in base.steps(spec))}


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console or Console(quiet=True))


def naive_ratio(fitted: Fitted) -> float:
    """Time of the curves' runs over that of as many full prefills, measured in the same fit."""
    return fitted.seconds / (fitted.runs * fitted.forward_seconds)
