"""InternVL3 as transformers has it: an image is cut into tiles, with a smaller one of the whole; 256 tokens for each.

A visual token holds four patches (pixel shuffle); a signal of a token is the mean of its patches', which no paper says.
Frames of a video are images to this model.

Paper: InternVL3: Exploring Advanced Training and Test-Time Recipes for Open-Source Multimodal Models (Zhu et al.,
    2025), https://arxiv.org/abs/2504.10479
Code: ``InternVLForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import check_pixels, no_new_images
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.intern import INTERN, side
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import Pictures
from tokenprune.towers.sizes import decoder_spec, vision_spec

TILES = 12  # the most that the processor makes of an image, without the one of the whole


@register_adapter("internvl", paper="https://arxiv.org/abs/2504.10479")
class InternVLAdapter(ModelAdapter):
    """InternVL3: a row of 256 visual tokens for each tile of an image, or one for all of an image (scope ``image``)."""

    model_types = ("internvl",)
    example = "OpenGVLab/InternVL3-8B-hf"
    prompt = "<|im_start|>user\n<IMG_CONTEXT>\n{question}<|im_end|>\n<|im_start|>assistant\n"
    scopes = ("tile", "image")
    tower = INTERN

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for an image of as many tiles as there can be."""
        vision, patches, width = config.vision_config, side(config), config.text_config.hidden_size
        shuffled = round(1 / config.downsample_ratio) ** 2
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=(TILES + 1) * patches**2 // shuffled,
            vision=vision_spec(vision),
            vision_tokens=(TILES + 1) * (patches**2 + 1),
            vision_tiles=TILES + 1,
            vision_prefix=1,
            patch_inputs=vision.num_channels * vision.patch_size[0] * vision.patch_size[1],
            projector=(vision.hidden_size * shuffled, width, width),
        )

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        super().check_inputs(inputs)
        check_pixels(inputs, "tiles of all images", size=self.model.config.vision_config.image_size)

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        """Images with their tiles as units; an image is a run of placeholders."""
        tiles, tokens, _ = output.pooler_output.shape
        own = self.placeholders(inputs["input_ids"], modality)
        begins = own & ~torch.nn.functional.pad(own[:, :-1], (1, 0))
        runs = torch.bincount(begins.flatten().cumsum(0)[own.flatten()] - 1)
        counts = (runs // tokens).tolist()
        if bool((runs % tokens).any()) or sum(counts) != tiles:
            raise ModelError(
                f"the images' placeholders number {runs.tolist()}, but there are {tiles} tiles of {tokens} visual "
                "tokens; make prompts and images with one call of the model's own processor"
            )
        side, of_tile = round(tokens**0.5), torch.arange(tokens)
        units = [Unit(tokens * tile + of_tile, (side, side)) for tile in range(max(counts))]
        parts = zip(output.pooler_output.split(counts), inputs["pixel_values"].split(counts), counts, strict=True)
        found = []
        for x, pixels, count in parts:
            rows = units[:count] if self.scope == "tile" else [_whole(tokens * count, side)]
            found.append(Item(x.flatten(0, 1), rows, pixels, Pictures.of(pixels, (side, side))))
        return found

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens as a tensor (T, 1, D), each counted as an image, so that beams can be made."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None])


def _whole(tokens: int, side: int) -> Unit:
    """The whole of an image as one unit."""
    return Unit(torch.arange(tokens), (side, side) if tokens == side**2 else None)
