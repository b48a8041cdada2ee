"""Pictures of what a pruner kept: the image with its dropped patches dimmed, next to question, truth and answer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tokenprune.types import Sample

SIDE = 384  # pixels of the long side, or a little less
FADE = 0.78  # how far a dropped patch goes towards PAPER
PAPER = 235  # light grey: dark and bright scenes both fade visibly, on screen and in print
RIGHT, WRONG = "#009E73", "#D55E00"


def kept_patches(image: Image.Image, stages: Sequence[Sequence[int]], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The image as the model sees it, cropped to the raster's proportions, with dropped patches grey and faded.

    Args:
        image: RGB.
        stages: raster indices of what was alive after each stage; the earlier a patch left, the more it is faded.
        grid: (rows, columns) of the image's visual tokens.

    Returns:
        (height, width, 3) pixels.
    """
    rows, columns = grid
    patch = SIDE // max(grid)
    crop = ImageOps.fit(image, (columns * patch, rows * patch), Image.Resampling.BICUBIC)
    pixels = np.asarray(crop, dtype=np.float64)
    missed = np.full(rows * columns, len(stages), dtype=np.float64)
    for kept in stages:
        missed[list(kept)] -= 1
    fade = FADE * (missed / max(1, len(stages))) ** 0.5  # so that what left at the last of many stages is seen, too
    fade = fade.reshape(grid).repeat(patch, 0).repeat(patch, 1)[..., None]
    grey = np.where(fade > 0, pixels.mean(2, keepdims=True), pixels)
    return (grey * (1 - fade) + PAPER * fade).astype(np.uint8)


def draw_kept(
    samples: Sequence[Sample],
    columns: Mapping[str, Mapping[str, Mapping[str, Any]]],
    grid: tuple[int, int],
    title: str,
    path: Path,
) -> None:
    """Draw some questions, one a row, under several budgets, one a column.

    Args:
        samples: the questions.
        columns: heading of a column to lines of ``samples.jsonl`` by sample id; a missing line leaves a gap.
        grid: (rows, columns) of an image's visual tokens.
        title: of the picture.
        path: PNG file to write.
    """
    widths = [1.1, *[1.0] * len(columns)]
    figure = Figure(figsize=(1.9 * sum(widths), 2.15 * len(samples) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(len(samples), 1 + len(columns), squeeze=False, width_ratios=widths)
    for axes, heading in zip(panels[0, 1:], columns, strict=True):
        axes.set_title(heading, fontsize=10)
    for sample, row in zip(samples, panels, strict=True):
        row[0].set_axis_off()
        row[0].text(0, 0.62, textwrap.fill(sample.question, 20), fontsize=10, fontweight="bold", va="bottom")
        row[0].text(0, 0.54, textwrap.shorten(f"truth: {sample.answer}", 40), fontsize=10, va="top")
        for axes, lines in zip(row[1:], columns.values(), strict=True):
            axes.set_axis_off()
            if line := lines.get(sample.id):
                _panel(axes, sample, line, grid)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, sample: Sample, line: Mapping[str, Any], grid: tuple[int, int]) -> None:
    axes.imshow(kept_patches(sample.image, [stage["kept"] for stage in line["stages"]], grid))
    right = line["correct"] >= 0.5
    text = textwrap.shorten(f"{'✓' if right else '✗'} {line['answer']}", 28)
    axes.text(
        0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=10, color=RIGHT if right else WRONG
    )
