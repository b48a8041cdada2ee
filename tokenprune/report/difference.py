"""Pictures of what two pruners keep of the same images: kept by both, by one alone, by neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.core.turn import only_picture
from tokenprune.sweeps.overlay import (
    FADE,
    PLAIN,
    Line,
    fade_pixels,
    model_view,
    patch_side,
    table_of_images,
    write_answer,
)

TINTS = ("#0072B2", "#E69F00")  # dark and light, and hatched against each other: told apart in grey too
STRENGTH = 0.6  # of a tint
HATCH = 10  # pixels from line to line
LINE = 3  # pixels of a line


def kept_last(line: Line) -> set[int]:
    """Raster indices of the live tokens after the last stage; of all tokens if nothing was pruned."""
    return set(line["stages"][-1]["kept"]) if line["stages"] else set(range(line["visual_tokens"]))


def difference_patches(
    image: Image.Image, first: set[int], second: set[int], grid: tuple[int, int]
) -> NDArray[np.uint8]:
    """The image: as it is where both kept, tinted and hatched where one did, faded where neither did.

    Args:
        image: RGB.
        first: raster indices that one pruner kept.
        second: raster indices that the other kept.
        grid: (rows, columns) of the image's visual tokens.

    Returns:
        (height, width, 3) pixels.
    """
    side = patch_side(grid)

    def mask(kept: set[int]) -> NDArray[np.bool_]:
        chosen = np.zeros(grid[0] * grid[1], dtype=bool)
        chosen[sorted(kept)] = True
        return chosen.reshape(grid).repeat(side, 0).repeat(side, 1)

    pixels = model_view(image, grid)
    pixels = fade_pixels(pixels, np.where(mask(first | second), 0.0, FADE)[..., None])
    down, across = np.indices(pixels.shape[:2])
    for kept, colour, at in zip((first - second, second - first), TINTS, (down - across, down + across), strict=True):
        tint = np.array(to_rgb(colour)) * 255
        where = mask(kept)
        pixels[where] = (1 - STRENGTH) * pixels[where] + STRENGTH * tint
        pixels[where & (at % HATCH < LINE)] = tint * 0.45
    return pixels.astype(np.uint8)


def draw_difference(
    samples: Sequence[Sample],
    columns: Mapping[str, tuple[Mapping[str, Line], Mapping[str, Line]]],
    names: tuple[str, str],
    path: Path,
) -> None:
    """Draw some questions, one a row, under several budgets, one a column.

    Args:
        samples: the questions.
        columns: heading of a column to lines of ``samples.jsonl`` by sample id, of A and of B.
        names: of A and B.
        path: PNG file to write.
    """
    figure, panels = table_of_images(samples, list(columns), f"A: {names[0]}   B: {names[1]}", height=2.45)
    for sample, row in zip(samples, panels, strict=True):
        for axes, (first, second) in zip(row, columns.values(), strict=True):
            a, b = first.get(sample.id), second.get(sample.id)
            image = only_picture(sample.turn) if a and b and a["grid"] else None
            if a and b and image:
                axes.imshow(difference_patches(image, kept_last(a), kept_last(b), tuple(a["grid"])))
                write_answer(axes, a, "A")
                write_answer(axes, b, "B", down=0.14)
    light = "#ffffff"
    legend = [
        Patch(facecolor=light, edgecolor="0.3", label="kept by both: as it is"),
        Patch(facecolor=TINTS[0], edgecolor="0.1", hatch=r"\\\\", label="A alone"),
        Patch(facecolor=TINTS[1], edgecolor="0.1", hatch="////", label="B alone"),
        Patch(facecolor="0.92", edgecolor="0.3", label="neither: faded"),
    ]
    figure.legend(
        handles=legend, loc="outside lower center", ncols=min(4, 1 + len(columns)), frameon=False, fontsize=10
    )
    figure.savefig(path, dpi=110, metadata=PLAIN)
