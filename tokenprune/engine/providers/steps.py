"""Which steps of a pruner a model can do: its stages, and the signals that are read there."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.core.errors import ModelError
from tokenprune.core.steps import Step
from tokenprune.engine.providers.base import Facts, check_signals, refusal
from tokenprune.engine.tower.signals import absent, check_layers
from tokenprune.towers.rows import RowTower


def check_steps(steps: Sequence[Step], facts: Facts) -> None:
    """Refuse steps of a pruner that a model cannot do; no weights are needed.

    Raises:
        ModelError: says which stage, or which signals, and what stands in for them.
    """
    facts.adapter.check_steps(steps)
    for step in steps:
        if step.stage.place not in facts.adapter.places:
            allowed = ", ".join(facts.adapter.places)
            raise ModelError(f"{facts.adapter.__name__} has no stage {step.stage.place}; allowed: {allowed}")
        if step.stage.place == "tower":
            _check_tower(step, facts)
            continue
        inside = step.stage.inside
        check_signals(step.selector.requires, facts, inside=inside, where=f" ({step.stage})" if inside else "")
    before = [str(step.stage) for step in steps if step.stage.place in ("projector", "pre_llm")]
    if len(before) > 1:
        raise ModelError(f"stages {' and '.join(before)} cannot follow one another; choose at one of them")


def _check_tower(step: Step, facts: Facts) -> None:
    """Refuse a step inside the vision tower; without a config, its layer is not looked at."""
    tower = facts.adapter.tower
    assert isinstance(tower, RowTower)  # as the family has the stage
    if missing := absent(step, tower):
        who = f"a stage inside the vision tower ({step.stage})"
        offered = {signal.plain for signal in tower.offers if hasattr(signal, "layer")}
        raise refusal(who, missing, offered)
    if facts.config is not None and step.stage.layer is not None:
        tower.check_stage(step.stage.layer, facts.config)
        check_layers(step, tower, facts.config)
