"""Signals of the vision tower: its adapter knows where they are."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding

Of = TowerAttention | TowerKeys | TowerStates


def in_family(signal: Of, facts: Facts) -> bool:
    """Whether the towers of a family give such a signal, of this layer."""
    known = replace(signal, layer=None) in facts.adapter.offers
    return known and (signal.layer is None or facts.adapter.any_layer)


def has_layer(signal: Of, facts: Facts) -> None:
    """Raise ModelError if the vision tower of a model has no such layer."""
    depth = getattr(getattr(facts.config, "vision_config", None), "num_hidden_layers", None)
    if signal.layer is not None and depth is not None and not -depth <= signal.layer < depth:
        raise ModelError(f"{signal}: the vision tower has {depth} layers; allowed: {-depth} to {depth - 1}")


@provides(TowerAttention, offered=in_family, check=has_layer)
@provides(TowerKeys, offered=in_family, check=has_layer)
@provides(TowerStates, offered=in_family, check=has_layer)
def tower_signal(signal: Of, view: Encoding) -> Tensor:
    """Signal (T, ...) of each visual token: of several patches, their mean."""
    adapter, parts = view.adapter, {}
    for modality, output in view.encoded.outputs.items():
        found = adapter.vision_signals(modality, output, view.inputs, frozenset({signal}))[signal]
        parts[modality] = adapter.per_token(modality, found, view.inputs)
    return view.encoded.in_order(parts)
