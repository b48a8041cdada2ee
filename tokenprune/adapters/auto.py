"""Any model that follows the conventions of transformers; ``engine.auto_check`` makes it, and checks the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import PIXELS, real_tokens
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.sizes import decoder_spec

Tiles = Literal["none", "together", "apart"]


class AutoAdapter(ModelAdapter):
    """An adapter of models that no other serves, without signals of the vision tower.

    Attributes:
        tiles: how an image that is encoded as several stands in a prompt.
    """

    model_types = ()
    example = ""
    any_size = True

    def __init__(
        self, model: Any, processor: Any, *, tiles: Tiles = "none", visual_tokens: int = 1, **options: Any
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: the model.
            processor: that belongs to it.
            tiles: of an image, in the prompt.
            visual_tokens: of the nominal image.
            **options: see ``ModelAdapter``.

        Raises:
            ModelError: if the model does not follow the conventions; says which part.
        """
        for owner, name in ((model.config, "image_token_id"), (model.base_model, "get_image_features")):
            if getattr(owner, name, None) is None:
                raise ModelError(f"{unknown(model)} has no {name}; see docs/add_an_adapter.md")
        super().__init__(model, processor, **options)
        self.tiles, self.spec = tiles, replace(self.spec, visual_tokens=visual_tokens)

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """The language model alone; how many visual tokens an image has, encoding one tells."""
        text = config.get_text_config()
        return ModelSpec(llm=decoder_spec(text), vocabulary=text.vocab_size, visual_tokens=1)

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        """Images as units; where an image is cut into tiles, what stands side by side in a prompt is one image.

        If text is between the tiles, it is not known where an image ends, and all images of a prompt count as one.
        Where it is not known which pixels are whose, features stand for them, and a randomised pruner may treat an
        image in a batch otherwise than alone.
        """
        images, pixels = list(output.pooler_output), inputs[PIXELS[modality]]
        own = list(pixels) if len(pixels) == len(images) else images
        if self.tiles != "none":
            place = self.placeholders(inputs["input_ids"], modality)
            ends = runs(place) if self.tiles == "together" else place.sum(1)
            images, own = _joined(images, own, ends.tolist())
        return [Item(x, [Unit(torch.arange(len(x)))], p) for x, p in zip(images, own, strict=True)]

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """The encoder's output is a tensor (T, 1, D) if it gave a tensor: each visual token counts as an image."""
        whole = isinstance(output.pooler_output, Tensor)
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None] if whole else parts)

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids as the model itself numbers the unpruned prompt."""
        given = {**inputs, "attention_mask": real_tokens(inputs).long()}
        found: Tensor = self.model._prepare_position_ids_for_generation(inputs["input_ids"], given)
        if found.dim() != 2:
            raise ModelError(
                f"{type(self.model).__name__} has position ids of several axes; see docs/add_an_adapter.md"
            )
        return found


def unknown(model: Any) -> str:
    """The beginning of a sentence about a model that no adapter knows."""
    return f"no adapter knows models of type {model.config.model_type!r}, and this one"


def runs(place: Tensor) -> Tensor:
    """Lengths (R,) long of the runs of True in a (B, L) mask, row after row; no run goes on in the next row."""
    begins = place & ~torch.nn.functional.pad(place[:, :-1], (1, 0))
    return torch.bincount(begins.flatten().cumsum(0)[place.flatten()] - 1)


def _joined(tiles: list[Tensor], pixels: list[Tensor], sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Tiles and their pixels, put together to images of so many visual tokens, as far as such a number of tiles has."""
    ends = set(accumulate(sizes))
    starts = [0, *(n for n, end in enumerate(accumulate(map(len, tiles)), 1) if end in ends and n < len(tiles))]
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(tiles)], strict=True)]
    joined = [torch.cat([x.flatten() for x in pixels[part]]) for part in parts]
    return [torch.cat(tiles[part]) for part in parts], joined
