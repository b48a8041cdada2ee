"""LLaVA-NeXT (LLaVA-1.6): the whole image and its tiles, with a newline token at the end of each line of tiles.

Newline tokens are text to a pruner and stay, unless the scope is ``all``; their signals are 0.

Paper: LLaVA-NeXT: Improved reasoning, OCR, and world knowledge (Liu et al., 2024),
    https://llava-vl.github.io/blog/2024-01-30-llava-next/
Code: ``LlavaNextForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter, Video
from tokenprune.adapters.inputs import no_new_images
from tokenprune.adapters.registry import register_adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers import anyres
from tokenprune.towers.anyres import NEWLINE, check_tiles, image_items, pack, tile_counts, token_tiles
from tokenprune.towers.clip import CLIP, llava_spec
from tokenprune.towers.items import Item, Unit

PAPERS = 5  # tiles: the whole image and 2 x 2


@register_adapter("llava_next", paper="https://llava-vl.github.io/blog/2024-01-30-llava-next/")
class LlavaNextAdapter(ModelAdapter):
    """LLaVA-NeXT: a row of visual tokens for each tile of an image, 5 x 576 for a square one.

    Scopes: ``tile`` (what the tower sees at once is a row), ``image`` (all of an image is one), ``all`` (with its
    newline tokens), and ``papers``, the protocol of CDPruner's and other papers: tiles of an image that is made 672
    pixels wide and high, whatever its shape; padding is not taken off, and the LLM sees no newline tokens. Its inputs
    are those of ``prepare``.
    """

    model_types = ("llava_next",)
    example = "llava-hf/llava-v1.6-vicuna-7b-hf"
    scopes: ClassVar[tuple[str, ...]] = ("tile", "image", "all", "papers")
    tower = CLIP

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes for an image that fills the largest canvas, newline tokens not counted."""
        side = config.vision_config.image_size
        return llava_spec(config, 1 + max(height * width for height, width in config.image_grid_pinpoints) // side**2)

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        return anyres.nominal_inputs(self.model.config, self.spec, text)

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        super().check_inputs(inputs)
        config = self.model.config
        if inputs.get("pixel_values") is not None:
            check_tiles(config, inputs)
        if self.scope == "papers":
            placed = self.placeholders(inputs["input_ids"]).sum(1) % (PAPERS * self._tile_tokens())
            made = bool((inputs["image_sizes"] == self._canvas()).all()) and not bool(placed.any())
            if not made or set(tile_counts(config, inputs)) != {PAPERS}:
                raise ModelError(
                    f"scope 'papers' takes images of {self._canvas()} x {self._canvas()} pixels in {PAPERS} tiles, and "
                    "prompts without newline tokens; make them with Session.prepare"
                )

    def count_images(self, ids: Tensor) -> Tensor:
        """Refuse images in later turns: their numbers of tokens vary, so a prompt does not tell how many there are."""
        return no_new_images(self.placeholders(ids))

    def model_inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], videos: Sequence[Sequence[Video]] = ()
    ) -> dict[str, Any]:
        """Inputs of the model; the scope ``papers`` has rules of its own for tiles and placeholders."""
        if self.scope != "papers" or not any(images):
            return super().model_inputs(texts, images, videos)
        canvas, token = self._canvas(), self.processor.image_token
        pixels = self.processor.image_processor(
            [image for row in images for image in row], image_grid_pinpoints=[[canvas, canvas]], return_tensors="pt"
        )
        whole = token * (PAPERS * self._tile_tokens())
        longer = [text.replace(token, whole) for text in texts]
        inputs = self.processor.tokenizer(longer, padding=True, padding_side="left", return_tensors="pt")
        inputs |= {"pixel_values": pixels.pixel_values, "image_sizes": torch.full_like(pixels.image_sizes, canvas)}
        return {name: value.to(self.device) for name, value in inputs.items()}

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        joint = self.scope == "image"
        items = image_items(self.model, output.pooler_output, inputs, joint=joint, **self._options())
        if self.scope == "all":
            return [replace(item, units=[Unit(torch.arange(len(item.features)))]) for item in items]
        return [_without_newlines(item) for item in items] if self.scope == "papers" else items

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Signals of patches in the order of the visual tokens; 0 for newlines."""
        packed = torch.cat(pack(self.model, x, inputs, **self._options()))
        if self.scope != "papers":
            return packed
        return packed[torch.cat(token_tiles(self.model, inputs, **self._options())) != NEWLINE]

    def _options(self) -> dict[str, Any]:
        return {"vision_feature_select_strategy": self.model.config.vision_feature_select_strategy}

    def _tile_tokens(self) -> int:
        return self.spec.visual_tokens // self.spec.vision_tiles

    def _canvas(self) -> int:
        """Height and width in pixels of four tiles."""
        side: int = self.model.config.vision_config.image_size
        return 2 * side


def _without_newlines(item: Item) -> Item:
    """An image without the tokens that are in no unit."""
    seen = torch.zeros(len(item.features), dtype=torch.bool, device=item.features.device)
    seen[torch.cat([unit.tokens for unit in item.units])] = True
    number = seen.cumsum(0) - 1
    units = [Unit(number[unit.tokens], unit.grid) for unit in item.units]
    pictures = item.pictures and replace(item.pictures, arrange=functools.partial(_seen, item.pictures.arrange, seen))
    return replace(item, features=item.features[seen], units=units, pictures=pictures)


def _seen(arrange: Callable[[Tensor], Tensor], seen: Tensor, x: Tensor) -> Tensor:
    """What ``arrange`` gives, without the tokens that are not ``seen``."""
    return arrange(x)[seen]
