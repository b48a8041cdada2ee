"""Fit depth-wise policies: measure curves, minimise their sum under each budget, measure the best few jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenprune.core.errors import ConfigError
from tokenprune.core.sample import Sample
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Measured, Objective, Varied
from tokenprune.policies.fit_config import FitConfig
from tokenprune.policies.measurements import Measurements, open_journal
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dop import DOP, policy, policy_file
from tokenprune.pruners.dop import cost as costs
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.solve import Candidate, solve
from tokenprune.sweeps import provenance
from tokenprune.sweeps.build import build_base, build_task
from tokenprune.sweeps.journal import Journal


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

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
            cannot be met; as far as that can be known then, before any weights load, and at least before anything is
            measured.
    """
    checkpoint, base_part, base = build_base(config.model, config.pruner)
    spec = checkpoint.spec
    _check_base(base, config.pruner.name, spec)
    samples = build_task(config.task).samples()[: config.samples]
    checkpoint.check_samples(samples)
    points = grid(spec, config)
    if config.kind != "milliseconds":
        _check_budgets(config, spec, points, _cost(config, spec, 0, None))  # a prompt without text costs least
    journal = _journal(config)
    measurements = _measurements(config, checkpoint.load(), samples, base, journal, console)
    text = measurements.text_tokens()
    latency = measurements.latency(text) if config.kind == "milliseconds" else None
    cost = _cost(config, spec, text, latency)
    _check_budgets(config, spec, points, cost)
    measured = measurements.curves(points)
    curves = _curves(config, spec, _means(measured, len(samples)))
    found = solve(curves, cost, config.values, top=config.top)
    joint = measurements.jointly(one.depths for candidates in found for one in candidates)
    shared: dict[str, Any] = {"origin": measurements.origin, "base": base_part, "curves": curves}
    policies = []
    for value, candidates in zip(config.values, found, strict=True):
        known = tuple(replace(one, measured=joint[one.depths]) for one in candidates)
        limit = policy.Limit(kind=config.kind, value=value, text_tokens=text, latency=latency)
        fitted = policy.Policy(
            **shared, objective=_objective(config, len(samples)), budget=limit, chosen=_best(known), candidates=known
        )
        path = journal.path.with_name(f"{config.kind}_{value:.15g}.yaml")
        policy_file.save(fitted, path)
        policies.append((path, fitted))
    seconds = sum(one.seconds for one in measured)
    forward = sum(one.forward_seconds for one in measured)
    return Fitted(policies, len(points), seconds, forward)


def naive_ratio(fitted: Fitted) -> float:
    """Time of the curves' runs over the time of as many full prefills, measured in one fit."""
    return fitted.seconds / (fitted.runs * fitted.forward_seconds)


def grid(spec: ModelSpec, config: FitConfig) -> list[Varied]:
    """Points to measure: depths at equal steps, and numbers of visual tokens at equal ratios from an eighteenth on."""
    layers, total, update_only = spec.llm.layers, spec.visual_tokens, config.attention == "update_only"
    ends = {"attention": (1 - update_only, layers - 1 - update_only), "mlp": (0, layers - 2)}
    if config.query:
        ends["query"] = (0, layers - 2)
    depths = [
        (name, value)
        for name, (first, last) in ends.items()
        for value in sorted({int(x) for x in np.linspace(first, last, config.points).round()})
    ]
    sizes = np.geomspace(max(1, total / 18), 0.85 * total, config.points)
    return [*depths, *(("tokens", value) for value in sorted({int(x) for x in sizes.round()}))]


def _check_base(base: Pruner, name: str, spec: ModelSpec) -> None:
    if [step.stage for step in base.steps(spec)] != [PRE_LLM] or base.operations(spec) is not None:
        raise ConfigError(f"pruner {name!r}: a policy can be fitted only over one that selects before the LLM alone")


def _check_budgets(config: FitConfig, spec: ModelSpec, points: Sequence[Varied], cost: costs.Cost) -> None:
    """Raise BudgetError if no policy that can be found meets one of the budgets."""
    solve(_curves(config, spec, dict.fromkeys(points, 0.0)), cost, config.values, top=1)


def _journal(config: FitConfig) -> Journal:
    """The journal that all fits share which differ in their budgets alone, ready to append to."""
    mapping = config.to_mapping()
    relevant = {key: value for key, value in mapping.items() if key not in ("output", "budget", "top")}
    return open_journal(config.output, relevant)


def _measurements(
    config: FitConfig,
    session: Session,
    samples: Sequence[Sample],
    base: Pruner,
    journal: Journal,
    console: Console | None,
) -> Measurements:
    objective = Objective(
        teacher_forced=config.positions == "teacher_forced",
        reverse=config.direction == "reverse",
        update_only=config.attention == "update_only",
        max_new_tokens=config.max_new_tokens,
    )
    classes = {type(base), *(type(step.selector) for step in base.steps(session.adapter.spec))}
    origin = policy.Origin(
        model=config.model.name,
        path=config.model.path,
        weights=provenance.model_hash(session.adapter.model),
        data=provenance.data_hash(samples),
        code=provenance.code_hash(DOP, type(session.adapter), *classes),
    )
    return Measurements(session, samples, config.batch_size, objective, base, journal, origin, console)


def _objective(config: FitConfig, samples: int) -> policy.Objective:
    return policy.Objective(
        samples=samples, positions=config.positions, direction=config.direction, attention=config.attention
    )


def _means(measured: Sequence[Measured], samples: int) -> dict[Varied, float]:
    """Divergence at each point in nats, mean over the questions."""
    means = {}
    for point in measured[0].divergence:
        means[point] = sum(batch.divergence[point] for batch in measured) / samples
    return means


def _curves(config: FitConfig, spec: ModelSpec, divergence: dict[Varied, float]) -> Curves:
    named: dict[str, dict[int, float]] = {}
    for (name, value), kl in divergence.items():
        named.setdefault(name, {})[value] = kl
    return Curves.of(
        spec.llm.layers,
        spec.visual_tokens,
        attention=named["attention"],
        mlp=named["mlp"],
        tokens=named["tokens"],
        query=named.get("query"),
        update_only=config.attention == "update_only",
    )


def _cost(config: FitConfig, spec: ModelSpec, text: int, latency: LatencyModel | None) -> costs.Cost:
    if config.kind == "flops":
        return costs.flops(spec, text)
    return costs.average_tokens() if latency is None else costs.milliseconds(latency, text)


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate that was measured to diverge least; of equal ones the first."""
    return min(candidates, key=lambda one: one.measured or 0.0)
