"""Features of another encoder at the places of the visual tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.core.errors import ModelError
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.towers.timm_features import TimmEncoder, denormalised


@dataclass(frozen=True)
class EncoderFeatures:
    """ENCODER_FEATURES of a batch.

    Attributes:
        encoder: the other encoder.
        processor: of the model, which made the pixels.
    """

    encoder: TimmEncoder
    processor: Any

    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> Tensor:
        """(T, C) at the visual tokens of a batch, in the order of the placeholders; 0 for newlines.

        Args:
            encoded: the images and videos.

        Raises:
            ModelError: if it is not known where in which picture the visual tokens are.
        """
        found = []
        for modality, members in encoded.members.items():
            normalised = getattr(self.processor, f"{modality}_processor", self.processor.image_processor)
            for item in members:
                pictures = encoded.pictures[item]
                if pictures is None:
                    raise ModelError(
                        "features of another encoder need visual tokens of which it is known where in the picture they "
                        "are; this model's are not, as its adapter does not say it or its projector reads a CLS token"
                    )
                patches = self.encoder.patches(denormalised(pictures.pixels, normalised))
                placed = interpolate(patches, pictures.grid, mode="bilinear", antialias=True, align_corners=False)
                found.append((encoded.tokens[item], pictures.arrange(placed.flatten(2).mT)))
        whole = found[0][1].new_zeros(len(encoded.features), found[0][1].shape[1])
        for tokens, features in found:
            whole[tokens[: len(features)].to(whole.device)] = features
        return whole
