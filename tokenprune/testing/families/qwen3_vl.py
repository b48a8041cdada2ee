"""A tiny Qwen3-VL of random weights: features of three vision layers are added behind the first three layers."""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Inputs, flat
from tokenprune.testing.families.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """Qwen3-VL, which adds features of its tower behind the first layers."""

    def grids(self, inputs: Inputs, modality: str) -> list[Any]:
        """A video has a run of placeholders for each frame, with the time as text before it."""
        return [(1, h, w) for frames, h, w in super().grids(inputs, modality) for _ in range(frames)]

    def paces(self, model: Any, inputs: Inputs) -> list[Any]:
        return [1] * 99

    @torch.no_grad()
    def added(self, model: Any, inputs: Inputs) -> list[Tensor]:
        levels = len(model.config.vision_config.deepstack_visual_indexes)
        shape = (*inputs["input_ids"].shape, model.config.text_config.hidden_size)
        added = torch.zeros(levels, *shape)
        for name, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if inputs.get(pixels) is not None:
                places = inputs["input_ids"] == getattr(model.config, f"{name}_token_id")
                for level, features in enumerate(self.encoded(model, name, inputs).deepstack_features):
                    added[level][places] = flat(features)
        return list(added)


VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "num_position_embeddings": 144,
    "deepstack_visual_indexes": [0, 1, 2],
}
FAMILIES = {"qwen3_vl": Qwen3VL("Qwen3VL", VISION, head_dim=16)}
