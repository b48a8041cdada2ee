"""Visual tokens of smaller pictures, from towers that interpolate their position embeddings; see the pruner resize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.errors import ModelError
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.encoders import encode_items
from tokenprune.functional.cells import coarser


@dataclass(frozen=True)
class Resized:
    """RESIZED_FEATURES of a batch whose pictures are a row each.

    Attributes:
        model: with a CLIP or SigLIP tower that takes pictures of any size.
        quotas: how many tokens of each row stay.
    """

    model: Any
    quotas: tuple[int, ...]

    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> Tensor:
        """(T, D) in the order of the placeholders: of each row the tokens of its smaller picture, then 0.

        Raises:
            ModelError: if it is not known where in the picture the tokens are.
        """
        found = torch.zeros_like(encoded.features)
        units = (tokens.to(found.device) for tokens in encoded.layout.units)
        for tokens, pictures, quota in zip(units, encoded.pictures, self.quotas, strict=True):
            if pictures is None:
                raise ModelError("the pictures cannot be resized, as the projector reads more than their patches")
            smaller = coarser(max(quota, 1), pictures.grid)
            whole = smaller == pictures.grid
            features = encoded.features[tokens] if whole else self._features(pictures.pixels, pictures.grid, smaller)
            found[tokens[: len(features)]] = features.to(found)
        return found

    def _features(self, pixels: Tensor, grid: Sequence[int], smaller: Sequence[int]) -> Tensor:
        """(height * width, D) of one picture (1, 3, H, W) of which ``smaller`` patches are left of ``grid``.

        Raises:
            ModelError: if the tower is offloaded: transformers reads its position embeddings past accelerate's hooks.
        """
        if any(weight.is_meta for weight in self.model.base_model.vision_tower.embeddings.parameters()):
            raise ModelError(
                "smaller pictures need the vision tower's position embeddings, which are not in memory (device_map); "
                "keep the vision tower in memory, or take another pruner than resize"
            )
        patch = [side // cells for side, cells in zip(pixels.shape[-2:], grid, strict=True)]
        size = [cells * pixels_of for cells, pixels_of in zip(smaller, patch, strict=True)]
        small = interpolate(pixels.float(), size, mode="bicubic", antialias=True).to(pixels)
        output = encode_items(self.model, "image", {PIXELS["image"]: small}, interpolate_pos_encoding=True)
        features: Tensor = output.pooler_output[0]
        return features
