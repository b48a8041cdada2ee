"""Did the pruner keep the visual tokens that show what the question is about?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
MIN_COVER = 0.2  # share of a patch's area that the boxes must cover


def evidence_tokens(boxes: Sequence[Box], image_size: tuple[int, int], grid: tuple[int, int]) -> list[int]:
    """Visual tokens whose patch the boxes cover by at least a fifth, or the best covered ones if none is.

    The raster is laid over the largest centred part of the image that has its proportions: exact for processors that
    scale the short side and crop the centre, as CLIP's does.

    Args:
        boxes: (x0, y0, x1, y1) in pixels, ends excluded.
        image_size: (width, height) in pixels.
        grid: (rows, columns) of the image's visual tokens.

    Returns:
        Raster indices in increasing order; empty if there are no boxes, or they lie outside the crop.
    """
    (rows, columns), (width, height) = grid, image_size
    patch = min(width / columns, height / rows)  # pixels
    cover = np.zeros(grid)
    for x0, y0, x1, y1 in boxes:
        down, across = _overlap(y0, y1, height, rows, patch), _overlap(x0, x1, width, columns, patch)
        cover = np.maximum(cover, np.outer(down, across) / patch**2)
    if not cover.any():
        return []
    return [int(i) for i in np.flatnonzero(cover.ravel() >= min(MIN_COVER, cover.max()))]


def _overlap(low: float, high: float, size: int, cells: int, patch: float) -> NDArray[np.float64]:
    """Length that an interval shares with each of the cells that lie centred along one side of an image, pixels."""
    edges = (size - cells * patch) / 2 + patch * np.arange(cells + 1)
    shared: NDArray[np.float64] = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return shared.clip(min=0)


def evidence_kept(kept: Sequence[int], evidence: Sequence[int]) -> float | None:
    """Share of the evidence's tokens that were kept, in [0, 1]; None if there is no evidence."""
    return len(set(kept) & set(evidence)) / len(evidence) if evidence else None
