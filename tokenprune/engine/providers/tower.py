"""Signals of the vision tower: its adapter knows where they are."""

from __future__ import annotations

from torch import Tensor

from tokenprune.core.signals import Signal, TowerAttention, TowerKeys, TowerStates
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding

Of = TowerAttention | TowerKeys | TowerStates


def in_family(signal: Signal, facts: Facts) -> bool:
    """Whether the towers of a family give such a signal."""
    return signal in facts.adapter.offers


@provides(TowerAttention, offered=in_family)
@provides(TowerKeys, offered=in_family)
@provides(TowerStates, offered=in_family)
def tower_signal(signal: Of, view: Encoding) -> Tensor:
    """(T, ...) of each visual token: of several patches, their mean."""
    adapter, parts = view.adapter, {}
    for modality, output in view.encoded.outputs.items():
        found = adapter.vision_signals(modality, output, view.inputs, frozenset({signal}))[signal]
        parts[modality] = adapter.per_token(modality, found, view.inputs)
    return view.encoded.in_order(parts)
