"""Mistral Small 3.1 and its kin: a Pixtral vision tower that takes images of any size, four patches a visual token.

The tokens that end the lines of an image and the image itself are text to a pruner: they always stay.

Paper: Pixtral 12B (Agrawal et al., 2024), https://arxiv.org/abs/2410.07073
Code: ``Mistral3ForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import no_new_images
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers import nominal
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import Pictures
from tokenprune.towers.pixtral import PIXTRAL, grids
from tokenprune.towers.sizes import decoder_spec, vision_spec


@register_adapter("mistral3", paper="https://arxiv.org/abs/2410.07073")
class Mistral3Adapter(ModelAdapter):
    """Mistral 3: a row of visual tokens an image, as many as it has squares of 28 pixels, 3025 for the largest."""

    model_types = ("mistral3",)
    example = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    tower = PIXTRAL

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for an image of the largest size.

        Raises:
            ModelError: if the vision tower is not Pixtral's, or several of its layers are read.
        """
        vision, width, side = config.vision_config, config.text_config.hidden_size, config.spatial_merge_size
        if vision.model_type != "pixtral" or not isinstance(config.vision_feature_layer, int):
            raise ModelError(
                f"vision tower {vision.model_type!r} of which layer {config.vision_feature_layer} is read is not "
                "known; known: one layer of 'pixtral'"
            )
        patches = vision.image_size // vision.patch_size
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=(patches // side) ** 2,
            vision=replace(vision_spec(vision), mlp_matrices=3),
            vision_tokens=patches**2,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(vision.hidden_size * side**2, vision.hidden_size, width, width),
        )

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        side = nominal.side_of(self.model.config)
        return {**super().nominal_inputs(text), "image_sizes": torch.tensor([[side, side]])}

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        super().check_inputs(inputs)
        sizes, shape = inputs.get("image_sizes"), tuple(inputs["pixel_values"].shape)
        if sizes is None or len(shape) != 4 or len(sizes) != shape[0]:
            number = "no" if sizes is None else len(sizes)
            raise ModelError(
                f"pixel_values must be (images, 3, height, width) with image_sizes of each, got {shape} and {number} "
                "image_sizes; use the model's own processor"
            )

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        found, side = [], self.model.config.spatial_merge_size
        sizes = grids(self.model.config, inputs)
        parts = zip(output.pooler_output, inputs["pixel_values"], sizes, strict=True)
        for x, pixels, (height, width) in parts:
            patch, grid = self.model.config.vision_config.patch_size, (height // side, width // side)
            seen = pixels[:, : grid[0] * side * patch, : grid[1] * side * patch]  # what is left over is in no token
            unit, whole = Unit(torch.arange(len(x)), grid), pixels[:, : height * patch, : width * patch]
            found.append(Item(x, [unit], whole, Pictures.of(seen, grid)))
        return found
