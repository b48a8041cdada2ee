"""Attention inside the vision tower, which says what of a picture matters whatever is asked."""

from __future__ import annotations

from tokenprune.core.signals import Layer, OneOf, TowerAttention


def tower_attention(layer: Layer | None = None) -> OneOf:
    """Attention of CLS, or where a tower has none, the mean of what its patches pay to one another.

    Args:
        layer: of the tower; None for the one whose output the projector reads.
    """
    return OneOf(TowerAttention("cls", layer), TowerAttention("patches", layer))
