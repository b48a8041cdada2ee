"""Videos whose frames the vision tower sees one by one, and of which all have as many visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import Pictures


def video_items(features: Sequence[Tensor], videos: Tensor, side: int, scope: str) -> list[Item]:
    """Videos; visual tokens behind the last frame are in no unit.

    Args:
        features: (n, D) of each video, frame after frame.
        videos: (V, frames, 3, height, width) pixels.
        side: height and width of a frame, visual tokens.
        scope: ``image``: a video is one unit; ``per_frame``: a frame is an item; else a unit.
    """
    pairs, tokens = zip(features, videos, strict=True), torch.arange(videos.shape[1] * side**2)
    units = [Unit(frame, (side, side)) for frame in rearrange(tokens, "(f p) -> f p", p=side**2)]
    if scope != "per_frame":
        units = [Unit(tokens)] if scope == "image" else units
        return [Item(x, units, pixels, Pictures.of(pixels, (side, side))) for x, pixels in pairs]
    cuts = [side**2 * frame for frame in range(1, videos.shape[1])]
    frames = [frame for x, pixels in pairs for frame in zip(x.tensor_split(cuts), pixels, strict=True)]
    return [Item(x, units[:1], pixels, Pictures.of(pixels, (side, side))) for x, pixels in frames]
