"""Visual tokens of smaller pictures, from towers that interpolate their position embeddings; see the pruner resize."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import SmallerPicture
from tokenprune.engine.prompt.encoders import encode_items
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.functional.cells import coarser


def in_family(signal: SmallerPicture, facts: Facts) -> bool:
    """Whether the towers of a family take smaller pictures."""
    return signal in facts.adapter.on_offer()


def quotas(signal: SmallerPicture, view: Encoding) -> Hashable:
    """How many tokens stay, on which the signal depends."""
    return tuple(view.quotas)


@provides(SmallerPicture, offered=in_family, depends=quotas)
@torch.no_grad()
def smaller_picture(signal: SmallerPicture, view: Encoding) -> Tensor:
    """Visual tokens (T, D) of smaller pictures: of each image the tokens of its smaller picture, then 0.

    Raises:
        ModelError: if it is not known where in the picture the tokens are, or some have left inside the vision tower.
    """
    encoded = view.encoded
    if encoded.early:
        raise ModelError("pictures cannot be resized once patches have left inside the vision tower")
    found = torch.zeros_like(encoded.features)
    units = (tokens.to(found.device) for tokens in encoded.layout.units)
    for tokens, pictures, quota in zip(units, encoded.pictures, view.quotas, strict=True):
        if pictures is None:
            raise ModelError("the pictures cannot be resized, as the projector reads more than their patches")
        smaller = coarser(max(quota, 1), pictures.grid)
        whole = smaller == pictures.grid
        model = view.adapter.model
        features = encoded.features[tokens] if whole else _features(model, pictures.pixels, pictures.grid, smaller)
        found[tokens[: len(features)]] = features.to(found)
    return found


def _features(model: Any, pixels: Tensor, grid: Sequence[int], smaller: Sequence[int]) -> Tensor:
    """Visual tokens (height * width, D) of one picture (1, 3, H, W) of whose ``grid`` patches ``smaller`` are left.

    Raises:
        ModelError: if the tower is offloaded: transformers reads its position embeddings past accelerate's hooks.
    """
    if any(weight.is_meta for weight in model.base_model.vision_tower.embeddings.parameters()):
        raise ModelError(
            "smaller pictures need the vision tower's position embeddings, which are not in memory (device_map); "
            "keep the vision tower in memory, or take another pruner than resize"
        )
    patch = [side // cells for side, cells in zip(pixels.shape[-2:], grid, strict=True)]
    size = [cells * pixels_of for cells, pixels_of in zip(smaller, patch, strict=True)]
    small = interpolate(pixels.float(), size, mode="bicubic", antialias=True).to(pixels)
    output = encode_items(model, "image", {PIXELS["image"]: small}, interpolate_pos_encoding=True)
    features: Tensor = output.pooler_output[0]
    return features
