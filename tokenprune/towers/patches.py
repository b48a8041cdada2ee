"""Signals of visual tokens each of which stands for a square of patches: they are means over the square.

Projectors of such families pool the patches, or put their features side by side.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange, reduce
from torch import Tensor

from tokenprune.core.signals import Layer, Signal, TowerAttention, TowerStates
from tokenprune.towers.attention import attention_to, layer_index
from tokenprune.towers.items import Grid


def pool(x: Tensor, grid: Grid, side: int) -> Tensor:
    """Means (I, tokens, C) over squares of patches, both in raster order.

    Args:
        x: (I, height * width, C).
        grid: (height, width), patches.
        side: of a square, patches; what is left over at the right and at the bottom is in no token.
    """
    height, width = grid[0] // side, grid[1] // side
    whole = rearrange(x, "i (h w) c -> i h w c", h=grid[0])[:, : height * side, : width * side]
    return reduce(whole, "i (h a) (w b) c -> i (h w) c", "mean", a=side, b=side)


def siglip_signals(layers: Any, output: Any, requires: frozenset[Signal]) -> dict[Signal, Tensor]:
    """Signals of a SigLIP tower whose last features are read, of its last layer or one that is named.

    ``TowerStates`` and ``TowerKeys`` are (I, patches, C), ``TowerAttention`` is (I, patches, H).

    Args:
        layers: of the tower.
        output: of the tower; with the hidden states that are needed.
        requires: signals.
    """
    signals: dict[Signal, Tensor] = {}
    for signal in requires:
        given: Layer | None = getattr(signal, "layer", None)
        index = layer_index(-1 if given is None else given, len(layers))
        if isinstance(signal, TowerStates):
            signals[signal] = output.last_hidden_state if given is None else output.hidden_states[index + 1]
            continue
        attention, x = layers[index].self_attn, layers[index].layer_norm1(output.hidden_states[index])
        keys = attention.k_proj(x)
        asked = isinstance(signal, TowerAttention)
        signals[signal] = attention_to(keys, attention.q_proj(x), attention) if asked else keys
    return signals
