"""Inputs of the nominal image of a spec, so that costs can be measured without a processor or a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune.core.sizes import ModelSpec

MARKER = 7  # a token of text, whatever it means


def noise(*shape: int) -> Tensor:
    """Pixels of noise, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def side_of(config: Any) -> int:
    """Height and width, in pixels, of what the vision tower sees at once."""
    size = config.vision_config.image_size
    return int(size[0] if isinstance(size, list | tuple) else size)


def tiles(config: Any, spec: ModelSpec) -> Tensor:
    """Pixels (tiles, 3, height, width) of noise."""
    return noise(spec.vision_tiles, 3, side_of(config), side_of(config))


def prompt(config: Any, text: int, image: int, first: int = 0) -> dict[str, Tensor]:
    """A prompt of one row.

    Args:
        config: of the model.
        text: tokens besides those of the image, at least 2.
        image: placeholders; ``first`` of them, a token of text, the others, and the rest of the text.
        first: how many.
    """
    placeholder, words = torch.full((image,), config.image_token_id), torch.full((text - 1,), MARKER)
    ids = torch.cat([placeholder[:first], words[:1], placeholder[first:], words])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def marked(inputs: dict[str, Tensor], name: str, config: Any) -> dict[str, Tensor]:
    """The inputs with one more: 1 where the image is."""
    return {**inputs, name: (inputs["input_ids"] == config.image_token_id).long()}
