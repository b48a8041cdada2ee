"""Signals of the vision tower: its kind knows how they are made."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import (
    OfLayer,
    TowerAttention,
    TowerHeadMean,
    TowerKeys,
    TowerLogits,
    TowerStates,
    TowerValueAttention,
)
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.towers.base import TowerOutput


def in_family(signal: OfLayer, facts: Facts) -> bool:
    """Whether the towers of a family give such a signal."""
    return replace(signal, layer=None) in facts.adapter.tower.offers


def has_layer(signal: OfLayer, facts: Facts) -> None:
    """Raise ModelError if the vision tower of a model has no such layer."""
    if signal.layer is None or facts.config is None:
        return
    depth = facts.adapter.tower.depth(facts.config)
    if not -depth <= signal.layer < depth:
        raise ModelError(f"{signal}: the vision tower has {depth} layers; allowed: {-depth} to {depth - 1}")


@provides(TowerAttention, offered=in_family, check=has_layer)
@provides(TowerHeadMean, offered=in_family, check=has_layer)
@provides(TowerKeys, offered=in_family, check=has_layer)
@provides(TowerLogits, offered=in_family, check=has_layer)
@provides(TowerStates, offered=in_family, check=has_layer)
@provides(TowerValueAttention, offered=in_family, check=has_layer)
def tower_signal(signal: OfLayer, view: Encoding) -> Tensor:
    """Signal (T, ...) of each visual token: of several patches, their mean."""
    adapter, parts = view.adapter, {}
    for modality, output in view.encoded.outputs.items():
        found = adapter.tower.signal(signal, TowerOutput(adapter.model, modality, output, view.inputs))
        parts[modality] = adapter.per_token(modality, view.encoded.at_all_patches(modality, found), view.inputs)
    return view.encoded.in_order(parts)
