"""Pixtral, a vision tower that takes images of any size, packed in one row, and turns queries and keys by place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.models.pixtral.modeling_pixtral import apply_rotary_pos_emb

from tokenprune.core.signals import Signal
from tokenprune.towers.attention import received_in_pictures
from tokenprune.towers.base import Tower, TowerOutput, attending
from tokenprune.towers.items import Grid
from tokenprune.towers.patches import pool


def grids(config: Any, inputs: Mapping[str, Any]) -> list[Grid]:
    """The (height, width) of each image, in patches."""
    patch = config.vision_config.patch_size
    return [(int(height) // patch, int(width) // patch) for height, width in inputs["image_sizes"]]


@dataclass(frozen=True)
class PixtralVision(Tower):
    """Pixtral; signals are (1, P, ...) of the patches of all images, keys before rotation."""

    def reads(self, config: Any) -> tuple[int, ...]:
        return (int(config.vision_feature_layer % (self.depth(config) + 1)) - 1,)

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        return seen.states[self.layer(signal, seen.config) + 1]

    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        attention, x = self._attending(signal, seen)
        keys: Tensor = attention.k_proj(x)
        return keys

    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention (1, P, H) that each patch receives from those of its image, after rotation by row and column."""
        (attention, x), model = self._attending(signal, seen), seen.model
        sizes = grids(model.config, seen.inputs)
        places = [torch.cartesian_prod(torch.arange(height), torch.arange(width)) for height, width in sizes]
        rotation = model.base_model.vision_tower.patch_positional_embedding(x, torch.cat(places).to(x.device))
        projected = (attention.q_proj(x), attention.k_proj(x))
        query, key = (rearrange(y, "1 p (h d) -> p h d", h=attention.num_heads) for y in projected)
        rotation = [y.to(query.device) for y in rotation]  # of the whole tower, whose layers may be on several GPUs
        query, key = apply_rotary_pos_emb(query, key, *rotation, unsqueeze_dim=1)
        lengths = [height * width for height, width in sizes]
        return received_in_pictures(key, query, lengths, attention.head_dim**-0.5)[None]

    def merged(self, x: Tensor, seen: TowerOutput) -> Tensor:
        """Means over the patches of each visual token: (1, P, C) to (T, C)."""
        config = seen.config
        sizes = grids(config, seen.inputs)
        images = zip(torch.split(x, [height * width for height, width in sizes], 1), sizes, strict=True)
        return torch.cat([pool(image, grid, config.spatial_merge_size)[0] for image, grid in images])

    def _attending(self, signal: Signal, seen: TowerOutput) -> tuple[Any, Tensor]:
        """The attention module of the layer that a signal is of, and what it was given (1, P, V)."""
        number = attending(self.layer(signal, seen.config))
        layer = seen.model.base_model.vision_tower.transformer.layers[number]
        return layer.attention, layer.attention_norm(seen.states[number])


PIXTRAL = PixtralVision()
