"""Scores of FlowCut, where patches leave by them, and how many."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tokenprune.conditioning.base import over_heads
from tokenprune.core.errors import ConfigError
from tokenprune.core.signals import Layer, Signal, TowerAttention, TowerHeadMean, TowerValueAttention
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen


def signals(layer: Layer | None) -> tuple[Signal, Signal, Signal]:
    """What a score is made of in a layer of the tower."""
    return TowerAttention("cls", layer), TowerValueAttention(layer), TowerHeadMean("values", layer)


def cuts(layers: int) -> Iterator[tuple[int, int]]:
    """Layers (0-based) behind which patches leave, and how many layers follow before the last one that is read.

    Args:
        layers: of the tower, up to the last one that the projector reads.

    Raises:
        ConfigError: if that is the first.
    """
    if layers < 2:
        raise ConfigError("flowcut needs a vision tower of which the projector reads the second layer or a later one")
    yield from ((layer, layers - 2 - layer) for layer in range(layers - 1) if (layers - layer) % 2 == 0)


def score(tokens: VisualTokens, layer: Layer | None) -> Tensor:
    """The score (B, N) of each patch in a layer: its shares of both kinds of attention, times the size of its value."""
    attention, by_values, values = signals(layer)
    by_keys, similar = over_heads(tokens, attention), over_heads(tokens, by_values)
    size = widen(tokens.signal(values)).abs().sum(2)
    return (_shares(by_keys) + _shares(similar)) * size


def leaving(attention: Tensor, k: int, later: int) -> Tensor:
    """How many patches (B,) long leave by the entropy of their attention.

    Args:
        attention: (B, N) of CLS, mean over the heads.
        k: patches that the last stage keeps.
        later: layers that follow before it.
    """
    share, number = _shares(attention), attention.shape[1]
    even = torch.special.entr(share).sum(1) / math.log(max(2, number))
    most: float = (number - k) / math.sqrt(later)
    return torch.round(most * (1 - even.square())).long()


def _shares(x: Tensor) -> Tensor:
    """Numbers (B, N) divided by their sum over the tokens."""
    return x / x.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
