"""PaliGemma and PaliGemma 2: images, then a prompt, all of which see one another whatever their order (a prefix LM).

The model tells the prefix from what it answers by ``token_type_ids``, which are shortened with the prompt. It counts
positions from 1, to which its ``generate`` translates positions that count from 0 and its forward does not.

Paper: PaliGemma: A versatile 3B VLM for transfer (Beyer et al., 2024), https://arxiv.org/abs/2407.07726
Code: ``PaliGemmaForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter, Video
from tokenprune.adapters.inputs import check_pixels
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.items import Grid
from tokenprune.towers.siglip import SIGLIP
from tokenprune.towers.sizes import decoder_spec, has_head, vision_spec


@register_adapter("paligemma", paper="https://arxiv.org/abs/2407.07726")
class PaliGemmaAdapter(ModelAdapter):
    """PaliGemma: a row of visual tokens an image, 256 for 224 pixels and 1024 for 448; one prompt, no later turns."""

    model_types = ("paligemma",)
    example = "google/paligemma2-3b-mix-224"
    prompt = "<image>answer en {question}"
    roles = ("answer en", "\n")
    answer_type = 1
    text_alone = False
    tower = SIGLIP
    places = ("tower", *ModelAdapter.places)

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=patches,
            vision=vision_spec(vision),
            vision_tokens=patches,
            vision_head=has_head(vision),
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(vision.hidden_size, config.projection_dim),
        )

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        inputs = super().nominal_inputs(text)
        return {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}

    def grid(self) -> Grid:
        """The (height, width) of an image's visual tokens: 16 x 16 for 224 pixels."""
        side = int(self.spec.visual_tokens**0.5)
        return side, side

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Check the size of images, and that all their placeholders are in the prefix."""
        super().check_inputs(inputs)
        check_pixels(inputs, "images", size=(self.model.config.vision_config.image_size,) * 2)
        types, visual = inputs.get("token_type_ids"), self.placeholders(inputs["input_ids"])
        if types is None or types.shape != visual.shape or bool(types[visual].any()):
            raise ModelError(
                "token_type_ids must be there and be 0 for the prefix, the images' placeholders among it; give them as "
                "the model's own processor returns them"
            )

    def model_inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], videos: Sequence[Sequence[Video]] = ()
    ) -> dict[str, Any]:
        """Inputs of the model without labels, which its processor makes whether or not there are answers."""
        inputs = super().model_inputs(texts, images, videos)
        inputs.pop("labels", None)
        return inputs

    def count_images(self, ids: Tensor) -> Tensor:
        """Raise ModelError: what a prefix is in a later turn is not defined."""
        raise ModelError("PaliGemma answers one prompt; a later turn on its cache cannot be pruned")

    def forward_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids (B, L) that count from 1."""
        return super().forward_positions(inputs) + 1

    def forward_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments of a forward: positions count from 1, and the labels of the processor are not read."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        return {**given, "position_ids": given["position_ids"] + 1}

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens as a tensor (T, 1, D), each counted as an image, so that beams can be made."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None])
