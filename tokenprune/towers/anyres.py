"""Images in tiles (AnyRes), as LLaVA-NeXT introduced them.

The vision tower sees the whole image and its tiles, each of the same size. The model puts the tiles' visual tokens
together again, takes off the padding around the image, and ends each line with a newline token. What it does to the
features it does here to anything else that there is of each patch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers import nominal
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import Pictures

NEWLINE = -1


def nominal_inputs(config: Any, spec: ModelSpec, text: int) -> dict[str, Tensor]:
    """Inputs with a square image, with a newline token for each line of its tiles."""
    tiles = spec.vision_tiles - 1
    lines, canvas = (
        math.isqrt(spec.visual_tokens // spec.vision_tiles * tiles),
        math.isqrt(tiles) * nominal.side_of(config),
    )
    pixels = {"pixel_values": nominal.tiles(config, spec)[None], "image_sizes": torch.tensor([[canvas, canvas]])}
    return {**nominal.prompt(config, text, spec.visual_tokens + lines), **pixels}


def check_tiles(config: Any, inputs: Mapping[str, Any]) -> None:
    """Raise ModelError unless pixels of tiles are given, and the sizes of their images."""
    side, shape, sizes = config.vision_config.image_size, tuple(inputs["pixel_values"].shape), inputs.get("image_sizes")
    if len(shape) != 5 or shape[3:] != (side, side) or sizes is None or tuple(sizes.shape) != (shape[0], 2):
        got = "no image_sizes" if sizes is None else f"image_sizes {tuple(sizes.shape)}"
        raise ModelError(
            f"pixel_values must be (images, tiles, 3, {side}, {side}) and image_sizes (images, 2), got {shape} and "
            f"{got}; use the model's own processor"
        )


def tile_counts(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    """How many pictures the tower sees of each image: the whole and its tiles.

    Args:
        config: of the model.
        inputs: with ``image_sizes``, and ``batch_num_images`` if the processor tells how many images each prompt has:
            of several images the tower sees the whole alone.
    """
    sizes = inputs["image_sizes"].tolist()
    numbers = inputs.get("batch_num_images")
    alone = [True] * len(sizes) if numbers is None else [n == 1 for n in numbers for _ in range(int(n))]
    canvases, side = config.image_grid_pinpoints, config.vision_config.image_size
    return [
        image_size_to_num_patches(size, canvases, side) if single else 1
        for size, single in zip(sizes, alone, strict=True)
    ]


def pack(model: Any, x: Tensor, inputs: Mapping[str, Any], **options: Any) -> list[Tensor]:
    """Put what patches have in the order of each image's visual tokens, (n, C) for each image; 0 for newlines.

    Args:
        model: with ``pack_image_features``.
        x: (tiles of all images, N, C), something of each patch.
        inputs: of the model.
        **options: of ``pack_image_features``.
    """
    parts = torch.split(x, tile_counts(model.config, inputs))
    packed, _ = model.base_model.pack_image_features(
        parts, inputs["image_sizes"], image_newline=x.new_zeros(x.shape[2]), **options
    )
    return list(packed)


def token_tiles(model: Any, inputs: Mapping[str, Any], **options: Any) -> list[Tensor]:
    """The tile (n,) long that (most of) each visual token of an image is of, 0 for the whole; or ``NEWLINE``."""
    counts, side = tile_counts(model.config, inputs), _patches(model.config)
    device = inputs["image_sizes"].device
    own = torch.cat([torch.eye(max(counts), dtype=torch.float32, device=device)[:count] for count in counts])
    shares = pack(model, repeat(own, "t tile -> t patch tile", patch=side**2), inputs, **options)
    return [each.argmax(1).masked_fill(each.sum(1) == 0, NEWLINE) for each in shares]


def image_items(
    model: Any, features: Sequence[Tensor], inputs: Mapping[str, Any], *, joint: bool, **options: Any
) -> list[Item]:
    """Images whose newline tokens are in no unit.

    Args:
        model: with ``pack_image_features``.
        features: (n, D) of each image.
        inputs: of the model.
        joint: whether an image is one unit, else each of its tiles is.
        **options: of ``pack_image_features``.
    """
    tiles, counts, found = token_tiles(model, inputs, **options), tile_counts(model.config, inputs), []
    grid = (_patches(model.config),) * 2
    parts = zip(features, tiles, inputs["pixel_values"], inputs["image_sizes"], counts, strict=True)
    for x, tile, pixels, size, count in parts:
        units = [Unit((tile != NEWLINE).nonzero()[:, 0])] if joint else tile_units(model.config, tile)
        arrange = functools.partial(_pack_one, model, size, options)
        found.append(Item(x, units, pixels[:count], Pictures(pixels[:count], grid, arrange)))
    return found


def _pack_one(model: Any, size: Tensor, options: Mapping[str, Any], x: Tensor) -> Tensor:
    """Pack one image: (tiles, N, C) to (n, C)."""
    newline = x.new_zeros(x.shape[2])
    packed: tuple[Tensor]
    packed, _ = model.base_model.pack_image_features([x], size[None], image_newline=newline, **options)
    return packed[0]


def tile_units(config: Any, tile: Tensor) -> list[Unit]:
    """A unit for each tile, in raster order.

    Args:
        config: of the model.
        tile: (n,) of ``token_tiles``.
    """
    units, line = [], (tile == NEWLINE).cumsum(0)
    for number in sorted({*tile.tolist()} - {NEWLINE}):
        tokens = (tile == number).nonzero()[:, 0]
        height = len({*line[tokens].tolist()}) if number else _patches(config)
        units.append(Unit(tokens, (height, len(tokens) // height)))
    return units


def _patches(config: Any) -> int:
    """Height and width of a tile, in patches."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side
