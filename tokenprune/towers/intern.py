"""InternViT, the vision tower of InternVL: a CLS token, and four patches of a tile in each visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from einops import reduce
from torch import Tensor

from tokenprune.core.signals import TOWER, Signal, TowerAttention, TowerStates
from tokenprune.towers.base import TowerOutput
from tokenprune.towers.rows import RowTower


def side(config: Any) -> int:
    """Height and width of a tile, in patches."""
    patches: int = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
    return patches


@dataclass(frozen=True)
class InternVision(RowTower):
    """InternViT: its attention norms queries and keys, its projector shuffles squares of patches into tokens."""

    def layers(self, model: Any) -> Sequence[Any]:
        layers: Sequence[Any] = model.base_model.vision_tower.encoder.layer
        return layers

    def prefix(self, config: Any) -> int:
        """One token, CLS."""
        return 1

    def door(self, model: Any) -> Any:
        return model.base_model.vision_tower

    def reads(self, config: Any) -> tuple[int, ...]:
        return (int(config.vision_feature_layer % (self.depth(config) + 1)) - 1,)

    def attention_of(self, layer: Any) -> Any:
        return layer.attention

    def entering(self, layer: Any, hidden: Tensor) -> Tensor:
        normed: Tensor = layer.layernorm_before(hidden)
        return normed

    def key(self, attention: Any, x: Tensor) -> Tensor:
        keys: Tensor = attention.k_norm(attention.k_proj(x))
        return keys

    def query(self, attention: Any, x: Tensor) -> Tensor:
        queries: Tensor = attention.q_norm(attention.q_proj(x))
        return queries

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Hidden states behind a layer; of the last, if it is read, what the projector is given."""
        config = seen.config
        if signal != TowerStates() or config.vision_feature_layer != -1:
            return super().states(signal, seen)
        states: Tensor = seen.output.last_hidden_state
        return states[:, self.first(config) :]

    def merged(self, x: Tensor, seen: TowerOutput) -> Tensor:
        """Means over each visual token's patches: (tiles, patches, C) to (T, C)."""
        config = seen.config
        step = round(1 / config.downsample_ratio)
        tokens = side(config) // step
        return reduce(x, "t (h a w b) c -> (t h w) c", "mean", h=tokens, w=tokens, a=step, b=step)


INTERN = InternVision(TOWER | {TowerAttention("cls")})
