"""Signals at a stage inside a vision tower: of a layer that has run, of the patches that are left.

A signal that names no layer is of the one that ran last: that before the stage, or if the stage is behind an attention,
the stage's own. ``TowerStates()`` is what the stage's layer was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import OfLayer, Signal, TowerStates
from tokenprune.core.steps import Step
from tokenprune.towers.attention import layer_index
from tokenprune.towers.base import Tower


def chosen(asked: Signal, tower: Tower) -> OfLayer | None:
    """The first alternative of a signal that a tower can give of a layer; None if it can give none."""
    for each in asked.alternatives:
        if isinstance(each, OfLayer) and replace(each, layer=None) in tower.offers:
            return each
    return None


def asked_of(step: Step, tower: Tower) -> Iterator[tuple[OfLayer, OfLayer]]:
    """The signals that a step gets: each as it was asked for, and with the layer that it is of."""
    for asked in step.selector.requires:
        signal = chosen(asked, tower)
        assert signal is not None  # as it was checked
        yield signal, replace(signal, layer=_ran(step, signal)) if signal.layer is None else signal


def _ran(step: Step, signal: OfLayer) -> int:
    """The last layer that has run at a stage, as far as a signal is made of it; -1 if none has."""
    own = step.stage.after is not None and not isinstance(signal, TowerStates)
    return (step.stage.layer or 0) - 1 + own


def absent(step: Step, tower: Tower) -> list[Signal]:
    """Signals of which a tower can give a step no alternative."""
    return [asked for asked in step.selector.requires if chosen(asked, tower) is None]


def check_layers(step: Step, tower: Tower, config: Any) -> None:
    """Raise ModelError for signals of layers that have not run at a stage, or that there are not.

    Args:
        step: all of whose signals the tower can give.
        tower: of the model.
        config: of the model.
    """
    depth = tower.depth(config)
    for signal, named in asked_of(step, tower):
        before = _ran(step, signal)
        if before < 0:
            raise ModelError(f"{step.stage}: no layer of the vision tower has run there, so there is no {signal.plain}")
        assert named.layer is not None
        if not -depth <= named.layer < depth or layer_index(named.layer, depth) > before:
            raise ModelError(
                f"{signal} at {step.stage}: the vision tower has {depth} layers, of which those before the stage have "
                f"run; allowed: 0 to {before}"
            )


def remembered(tower: Tower, config: Any, steps: Iterable[Step], later: Sequence[Signal]) -> frozenset[int]:
    """Layers whose input must be remembered, so that signals can be made of it.

    Args:
        tower: of the model.
        config: of the model.
        steps: inside the tower.
        later: signals that are made when the tower has run.
    """
    within = (named for step in steps for _, named in asked_of(step, tower))
    layers = [tower.layer(signal, config) for signal in (*within, *later)]
    return frozenset({*layers, *(layer + 1 for layer in layers)})  # a layer's states are the input of the next one
