"""The vision towers of the Qwen families: images and videos of any size in one row, four patches a visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerStates
from tokenprune.towers.attention import received_in_pictures
from tokenprune.towers.base import Tower, TowerOutput


@dataclass(frozen=True)
class QwenVision(Tower):
    """A Qwen tower; signals are (P, ...) of the patches of all pictures, in the tower's order, keys before rotation."""

    def depth(self, config: Any) -> int:
        return int(config.vision_config.depth)

    def reads(self, config: Any) -> tuple[int, ...]:
        """The last layer."""
        return (self.depth(config) - 1,)

    def states(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Hidden states (P, V) behind a layer; what a merger reads, unless the layer is named."""
        if signal == TowerStates():
            states: Tensor = seen.output.last_hidden_state
            return states
        return seen.states[self.layer(signal, seen.config) + 1]

    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        return rearrange(self._projected(self.layer(signal, seen.config), seen)[1], "p h d -> p (h d)")

    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Attention (P, H) that patches receive, after rotation: in the last layer without windows, or the one named.

        In a layer with windows they receive it from the patches of their own window.

        Raises:
            ModelError: if no layer is named and all have windows.
        """
        layer, visual, grids = self._asked(signal, seen.model), seen.model.base_model.visual, _grids(seen)
        query, key, _ = self._projected(layer, seen)
        merge, square = _merge(seen), _merge(seen) ** 2
        hidden = seen.states[layer]
        turned = visual.rotary_pos_emb(hidden, get_vision_position_ids(grids, merge).to(hidden.device))
        rotation = [x.to(query.device) for x in turned]  # of the whole tower, whose blocks may be on several GPUs
        order = _order(seen, query.device)
        order = order if isinstance(order, slice) else order.argsort()  # of the tokens, in the tower's order
        tokens = (rearrange(x, "(t p) c -> t p c", p=square)[order] for x in rotation)
        query, key = apply_rotary_pos_emb_vision(query, key, *(rearrange(x, "t p c -> (t p) c") for x in tokens))
        lengths = [height * width for count, height, width in grids.tolist() for _ in range(count)]
        if layer not in _whole_layers(visual):
            lengths = _windows(seen)[1].diff().tolist()
        return received_in_pictures(key, query, lengths, visual.blocks[layer].attn.scaling)

    def merged(self, x: Tensor, seen: TowerOutput) -> Tensor:
        """Means over the patches of each visual token, (P, C) to (T, C), in the order of the tokens."""
        return reduce(x, "(t p) c -> t c", "mean", p=_merge(seen) ** 2)[_order(seen, x.device)]

    def _projected(self, layer: int, seen: TowerOutput) -> tuple[Tensor, ...]:
        """Queries, keys and values of a layer, each (P, H, d)."""
        block = seen.model.base_model.visual.blocks[layer]
        joint = block.attn.qkv(block.norm1(seen.states[layer]))
        parts = rearrange(joint, "p (part h d) -> part p h d", part=3, h=block.attn.num_heads)
        query, key, value = parts
        return query, key, value

    def _asked(self, signal: Signal, model: Any) -> int:
        """The layer that a signal names, or the last whose attention has no windows."""
        layers = _whole_layers(model.base_model.visual)
        if getattr(signal, "layer", None) is not None:
            return self.layer(signal, model.config)
        if not layers:
            raise ModelError("all layers of the vision tower attend within windows, so received_attention is not known")
        return max(layers)


def _whole_layers(visual: Any) -> Sequence[int]:
    """The layers of a tower whose attention has no windows."""
    layers: Sequence[int] = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    return layers


def _grids(seen: TowerOutput) -> Tensor:
    """(frames, height, width) of each picture, in patches."""
    grids: Tensor = seen.inputs[f"{seen.modality}_grid_thw"]
    return grids


def _merge(seen: TowerOutput) -> int:
    """Height and width of a visual token, in patches."""
    return int(seen.config.vision_config.spatial_merge_size)


def _windows(seen: TowerOutput) -> tuple[Tensor, Tensor]:
    """The visual token at each place of the tower, which puts windows side by side, and the first patch of each."""
    vision = seen.config.vision_config
    sizes = {"window_size": vision.window_size, "patch_size": vision.patch_size}
    index, ends = get_vision_window_index(_grids(seen), spatial_merge_size=vision.spatial_merge_size, **sizes)
    return index, ends


def _order(seen: TowerOutput, device: torch.device) -> Any:
    """Where the tower has the patches of each visual token; windows are put side by side."""
    if seen.config.model_type != "qwen2_5_vl":
        return slice(None)
    return _windows(seen)[0].argsort().to(device)


QWEN = QwenVision()
