"""Signals of visual tokens each of which stands for a square of patches: they are means over the square.

Projectors of such families pool the patches, or put their features side by side.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenprune.core.signals import Signal, TowerAttention, TowerKeys, TowerStates
from tokenprune.towers.attention import attention_to
from tokenprune.towers.items import Grid


def pool(x: Tensor, grid: Grid, side: int) -> Tensor:
    """(I, tokens, C) means over squares of patches, both in raster order.

    Args:
        x: (I, height * width, C).
        grid: (height, width), patches.
        side: of a square, patches; what is left over at the right and at the bottom is in no token.
    """
    height, width = grid[0] // side, grid[1] // side
    x = x.view(len(x), *grid, -1)[:, : height * side, : width * side]
    return x.reshape(len(x), height, side, width, side, -1).mean((2, 4)).flatten(1, 2)


def last_layer(layers: Any, output: Any, requires: frozenset[Signal]) -> dict[Signal, Tensor]:
    """Signals, as far as required, of a SigLIP tower whose last features are read.

    VISION_HIDDEN and KEYS are (I, patches, C), RECEIVED_ATTENTION is (I, patches, H).

    Args:
        layers: of the tower.
        output: of the tower; with hidden states if keys or attention are required.
        requires: signals.
    """
    signals: dict[Signal, Tensor] = {}
    if TowerStates() in requires:
        signals[TowerStates()] = output.last_hidden_state
    if requires & {TowerKeys(), TowerAttention("patches")}:
        attention, x = layers[-1].self_attn, layers[-1].layer_norm1(output.hidden_states[-2])
        signals[TowerKeys()] = attention.k_proj(x)
        if TowerAttention("patches") in requires:
            signals[TowerAttention("patches")] = attention_to(signals[TowerKeys()], attention.q_proj(x), attention)
    return signals
