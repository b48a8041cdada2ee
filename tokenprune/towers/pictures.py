"""What the vision tower saw of an image or video, for encoders of another kind to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor


def in_order(x: Tensor) -> Tensor:
    """Join (V, places, C) to (V * places, C): visual tokens are the places themselves, picture after picture."""
    return rearrange(x, "v p c -> (v p) c")


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that the tower saw at once, such as tiles or frames, and where visual tokens are in them.

    Attributes:
        pixels: (V, 3, height, width), normalised as the model's processor does.
        grid: (height, width) of the places in each picture of which visual tokens are made.
        arrange: (V, places, C) of something that each place has, in raster order, to (k, C) of the first k visual
            tokens of the image or video; those behind them have 0.
    """

    pixels: Tensor
    grid: tuple[int, int]
    arrange: Callable[[Tensor], Tensor] = in_order

    @classmethod
    def of(cls, pixels: Tensor, grid: tuple[int, int] | None) -> Pictures | None:
        """Pictures of pixels (..., 3, height, width) whose visual tokens are in order; None without a grid."""
        return None if grid is None else cls(rearrange(pixels, "... c h w -> (...) c h w"), grid)


def unpack(patches: Tensor, grid: Sequence[int], *, patch: int, temporal: int, merge: int) -> Tensor:
    """Pictures (frames * temporal, 3, height, width) from the patches that processors of the Qwen families make.

    They go through an image or video frame by frame, in a frame square by square of ``merge`` x ``merge`` patches, in a
    square patch by patch, all in raster order; a patch is (3, temporal, patch, patch). Of an image all ``temporal``
    pictures are the same.

    Args:
        patches: (P, 3 * temporal * patch * patch) of one image or video.
        grid: (frames, height, width), patches.
        patch: height and width of a patch, pixels.
        temporal: pictures of a video that make a frame.
        merge: height and width of a square, patches.
    """
    frames, height, width = grid
    # Squares, patches a and b in a square, pixels y and x in a patch.
    return rearrange(
        patches,
        "(f h w a b) (c t y x) -> (f t) c (h a y) (w b x)",
        f=frames,
        h=height // merge,
        w=width // merge,
        a=merge,
        b=merge,
        t=temporal,
        y=patch,
        x=patch,
    )


def over_time(x: Tensor, temporal: int) -> Tensor:
    """Means over the pictures that make a frame: (frames * temporal, places, C) to (frames * places, C)."""
    return reduce(x, "(f t) p c -> (f p) c", "mean", t=temporal)


def content_id(pixels: Tensor) -> Tensor:
    """A 63-bit hash () long of an image's pixels, equal in whatever batch the image is.

    A weighted sum of the float32 bit patterns modulo 2**64: exact, hence the same on each device, without a copy to the
    host.
    """
    bits = pixels.detach().float().flatten().contiguous().view(torch.int32).long()
    weights = (2 * torch.arange(len(bits), device=bits.device) + 1) * 0x9E3779B97F4A7C1
    return (bits * weights).sum() & 0x7FFF_FFFF_FFFF_FFFF
