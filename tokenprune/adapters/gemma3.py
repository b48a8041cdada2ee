"""Gemma 3: 256 visual tokens for each image, which see one another whatever their order.

The model tells them by ``token_type_ids``, which are shortened with the prompt, so that what stays of an image still
sees all of what stays of it. In layers with a sliding window the window counts the tokens that
entered the LLM, as the model counts those of any prompt. Crops (pan and scan) are images of their own.

Paper: Gemma 3 Technical Report (Gemma Team, 2025), https://arxiv.org/abs/2503.19786
Code: ``Gemma3ForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import CHUNKS_WORK, check_pixels
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers import nominal
from tokenprune.towers.items import Grid
from tokenprune.towers.patches import pool
from tokenprune.towers.siglip import SIGLIP
from tokenprune.towers.sizes import decoder_spec, has_head, vision_spec


@register_adapter("gemma3", paper="https://arxiv.org/abs/2503.19786")
class Gemma3Adapter(ModelAdapter):
    """Gemma 3: a row of 256 visual tokens an image, each the mean of 4 x 4 patches."""

    model_types = ("gemma3",)
    example = "google/gemma-3-4b-it"
    tower = SIGLIP

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        vision = config.vision_config
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=config.mm_tokens_per_image,
            vision=vision_spec(vision),
            vision_tokens=(vision.image_size // vision.patch_size) ** 2,
            vision_head=has_head(vision),
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(vision.hidden_size, config.text_config.hidden_size),
        )

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        return nominal.marked(super().nominal_inputs(text), "token_type_ids", self.model.config)

    def grid(self) -> Grid:
        """The (height, width) of an image's visual tokens: 16 x 16 for 256."""
        side = int(self.spec.visual_tokens**0.5)
        return side, side

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Check the size of images, and that ``token_type_ids``, if given, say which tokens are of images."""
        super().check_inputs(inputs)
        check_pixels(inputs, "images", size=(self.model.config.vision_config.image_size,) * 2)
        types, visual = inputs.get("token_type_ids"), self.placeholders(inputs["input_ids"])
        if types is not None and (types.shape != visual.shape or not torch.equal(types == 1, visual)):
            raise ModelError(
                "token_type_ids must be 1 for the images' placeholders and 0 for all other tokens; give them as the "
                "model's own processor returns them"
            )

    def count_images(self, ids: Tensor) -> Tensor:
        if not CHUNKS_WORK and bool(self.placeholders(ids).any()):
            raise ModelError(
                "this version of transformers masks images of a later turn wrongly; give all at first or take >= 5.23"
            )
        return super().count_images(ids)

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens as a tensor (T, 1, D), each counted as an image, so that beams can be made."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None])

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Means of the signals over the patches of each visual token."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return pool(x, (side, side), side // self.grid()[0]).flatten(0, 1)
