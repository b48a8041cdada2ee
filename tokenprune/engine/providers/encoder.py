"""Features of another encoder at the places of the visual tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Encoder
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.towers.timm_features import TimmEncoder, check_encoder, denormalised, load_encoder


def known(signal: Encoder, facts: Facts) -> None:
    """Raise ModelError if there is no such encoder."""
    check_encoder(signal.source)


def load(signal: Encoder, view: Encoding) -> None:
    """Load the encoder."""
    load_encoder(view.adapter.model, signal.source)


@provides(Encoder, check=known, ready=load)
def encoder_features(signal: Encoder, view: Encoding) -> Tensor:
    """Features (T, C) of the encoder that a signal names; 0 for newlines."""
    return features_of(load_encoder(view.adapter.model, signal.source), view)


@torch.no_grad()
def features_of(encoder: TimmEncoder, view: Encoding) -> Tensor:
    """Features (T, C) of an encoder in the order of the placeholders; 0 for newlines.

    Args:
        encoder: the other encoder.
        view: the images and videos, and the processor that made their pixels.

    Raises:
        ModelError: if it is not known where in which picture the visual tokens are.
    """
    encoded, processor, found = view.encoded, view.adapter.processor, []
    for modality, members in encoded.members.items():
        normalised = getattr(processor, f"{modality}_processor", processor.image_processor)
        for item in members:
            pictures = encoded.pictures[item]
            if pictures is None:
                raise ModelError(
                    "features of another encoder need visual tokens of which it is known where in the picture they "
                    "are; this model's are not, as its adapter does not say it or its projector reads a CLS token"
                )
            patches = encoder.patches(denormalised(pictures.pixels, normalised))
            placed = interpolate(patches, pictures.grid, mode="bilinear", antialias=True, align_corners=False)
            found.append((encoded.tokens[item], pictures.arrange(rearrange(placed, "i c h w -> i (h w) c"))))
    whole = found[0][1].new_zeros(len(encoded.features), found[0][1].shape[1])
    for tokens, features in found:
        whole[tokens[: len(features)].to(whole.device)] = features
    return whole
