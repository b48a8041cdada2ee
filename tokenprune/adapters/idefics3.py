"""Idefics3 and SmolVLM: the tiles of an image, then the whole of it, with text between them that says which is which.

The markers between tiles, such as ``<row_1_col_2>``, are text to a pruner and stay. Frames of a video are images here,
since the processor makes them so.

Paper: Building and better understanding vision-language models (Laurençon et al., 2024),
    https://arxiv.org/abs/2408.12637
Code: ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration`` of transformers.
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
from tokenprune.towers import nominal
from tokenprune.towers.items import Grid, Item, Unit
from tokenprune.towers.patches import pool
from tokenprune.towers.pictures import Pictures
from tokenprune.towers.siglip import IDEFICS
from tokenprune.towers.sizes import decoder_spec, vision_spec

TILES = 4 * 4 + 1  # of a square image, as the published processors cut it, and the whole


@register_adapter("idefics3", paper="https://arxiv.org/abs/2408.12637")
class Idefics3Adapter(ModelAdapter):
    """Idefics3 and SmolVLM: a row of visual tokens for each tile, 17 x 169 for a square image (SmolVLM: 17 x 64).

    Scopes: ``tile`` (what the tower sees at once is a row), ``image`` (all of an image is one).
    """

    model_types = ("idefics3", "smolvlm")
    example = "HuggingFaceTB/SmolVLM-500M-Instruct"
    scopes = ("tile", "image")
    tower = IDEFICS

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for a square image, cut into 4 x 4 tiles and the whole; longer images have fewer tiles."""
        vision, width = config.vision_config, config.text_config.hidden_size
        patches = (vision.image_size // vision.patch_size) ** 2
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=TILES * patches // config.scale_factor**2,
            vision=vision_spec(vision),
            vision_tokens=TILES * patches,
            vision_tiles=TILES,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(vision.hidden_size * config.scale_factor**2, width),
        )

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        config, tokens = self.model.config, self.spec.visual_tokens
        prompt = nominal.prompt(config, text, tokens, tokens - tokens // TILES)  # a marker before the whole image
        return {**prompt, "pixel_values": nominal.tiles(config, self.spec)[None]}

    def grid(self) -> Grid:
        """The (height, width) of a tile's visual tokens."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        return side, side

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Refuse tiles of another size than the tower was made for, in pixels."""
        super().check_inputs(inputs)
        check_pixels(inputs, "rows", "tiles", size=(self.model.config.vision_config.image_size,) * 2)

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        tiles, ids, number = inputs["pixel_values"].flatten(0, 1), inputs["input_ids"], self._tile_tokens()
        tiles = tiles[(tiles != 0).flatten(1).any(1)]  # rows with fewer tiles are filled up with zeros
        places, last = int(self.placeholders(ids).sum()), self._ends(ids)
        if places != len(tiles) * number or not bool(last[-1]):
            raise ModelError(
                f"the prompts hold {places} image placeholders, but the {len(tiles)} given tiles have {number} visual "
                f"tokens each, the last of an image after {self._marker()}; make prompts and images with one call of "
                "the model's own processor"
            )
        counts = (last.nonzero()[:, 0] + 1).diff(prepend=ids.new_zeros(1)).tolist()
        found, features = [], torch.cat(list(output.pooler_output))
        sizes = [count * number for count in counts]
        for x, pixels in zip(torch.split(features, sizes), torch.split(tiles, counts), strict=True):
            tokens = torch.arange(len(x))
            whole = [Unit(tokens, self.grid() if len(x) == number else None)]
            units = whole if self.scope == "image" else [Unit(own, self.grid()) for own in torch.split(tokens, number)]
            found.append(Item(x, units, pixels, Pictures.of(pixels, self.grid())))
        return found

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The kept visual tokens as a tensor (T, 1, D), each counted as an image: transformers 5.20 takes no list."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None])

    def _ends(self, ids: Tensor) -> Tensor:
        """Whether each tile, (tiles,) bool, is the last of its image: the whole image, after its marker."""
        marker = ids.new_tensor(self.processor.tokenizer(self._marker(), add_special_tokens=False)["input_ids"])
        row, start = self.placeholders(ids).nonzero()[:: self._tile_tokens()].T
        before = start[:, None] + torch.arange(-len(marker), 0, device=ids.device)
        return (ids[row[:, None], before.clamp(min=0)] == marker).all(1)

    def _marker(self) -> str:
        """The text that stands before the tile of the whole image."""
        return str(getattr(self.processor, "global_image_token", None) or self.processor.global_image_tag)

    def _tile_tokens(self) -> int:
        return self.spec.visual_tokens // TILES

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Means of the signals over the patches of each visual token."""
        side, factor = self.grid()[0], self.model.config.scale_factor
        return pool(x, (side * factor, side * factor), factor).flatten(0, 1)
