"""Pictures of what pruners kept: the image with its dropped patches dimmed, next to question, truth and answer."""

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

from tokenprune.core.sample import Sample
from tokenprune.core.square import square_sample
from tokenprune.core.turn import only_picture

PLAIN = {"Software": None}  # metadata of a PNG: the same picture is the same file
SIDE = 384  # pixels of the long side, or a little less
FADE = 0.78  # how far a dropped patch goes towards PAPER
PAPER = 235  # light grey: dark and bright scenes both fade visibly, on screen and in print
RIGHT, WRONG = "#009E73", "#D55E00"
LONGEST = 28  # characters of an answer, in its picture
Line = Mapping[str, Any]  # of samples.jsonl


def patch_side(grid: tuple[int, int]) -> int:
    """Pixels of a patch in a picture.

    Args:
        grid: (rows, columns) of the image's visual tokens.
    """
    return max(1, SIDE // max(grid))


def model_view(image: Image.Image, grid: tuple[int, int]) -> NDArray[np.float64]:
    """The image as the model sees it, cropped to the raster's proportions, (height, width, 3) pixels.

    Args:
        image: RGB.
        grid: (rows, columns) of its visual tokens.
    """
    rows, columns = grid
    side = patch_side(grid)
    crop = ImageOps.fit(image, (columns * side, rows * side), Image.Resampling.BICUBIC)
    return np.asarray(crop, dtype=np.float64)


def fade_pixels(pixels: NDArray[np.float64], fade: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let pixels go towards light grey.

    Args:
        pixels: (height, width, 3).
        fade: (height, width, 1) in [0, 1], how far; pixels at 0 keep their colour.
    """
    grey = np.where(fade > 0, pixels.mean(2, keepdims=True), pixels)
    return grey * (1 - fade) + PAPER * fade


def kept_patches(image: Image.Image, stages: Sequence[Sequence[int]], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The image as the model sees it, with dropped patches grey and faded.

    Args:
        image: RGB.
        stages: raster indices of the live tokens after each stage; the earlier a patch left, the more it is faded.
        grid: (rows, columns) of the image's visual tokens.

    Returns:
        (height, width, 3) pixels.
    """
    missed = np.full(grid[0] * grid[1], len(stages), dtype=np.float64)
    for kept in stages:
        missed[list(kept)] -= 1
    fade = FADE * (missed / max(1, len(stages))) ** 0.5  # so that what left at the last of many stages is seen, too
    side = patch_side(grid)
    spread = fade.reshape(grid).repeat(side, 0).repeat(side, 1)[..., None]
    return fade_pixels(model_view(image, grid), spread).astype(np.uint8)


def as_seen(sample: Sample, model: Mapping[str, Any]) -> Sample:
    """The sample as a model of this configuration sees it: padded to a square, if its pictures are."""
    return square_sample(sample, (PAPER,) * 3) if model.get("square") == "pad" else sample


def draw_kept(samples: Sequence[Sample], columns: Mapping[str, Mapping[str, Line]], title: str, path: Path) -> None:
    """Draw some questions, one a row, under several budgets, one a column.

    Args:
        samples: the questions.
        columns: heading of a column to lines of ``samples.jsonl`` by sample id; a missing line leaves a gap.
        title: of the picture.
        path: PNG file to write.
    """
    figure, panels = table_of_images(samples, list(columns), title)
    for sample, row in zip(samples, panels, strict=True):
        for axes, lines in zip(row, columns.values(), strict=True):
            if (line := lines.get(sample.id)) and line["grid"]:
                _panel(axes, sample, line)
    figure.savefig(path, dpi=110, metadata=PLAIN)


def table_of_images(
    samples: Sequence[Sample], headings: Sequence[str], title: str, height: float = 2.15
) -> tuple[Figure, NDArray[Any]]:
    """An empty figure with the questions at the left and room for images.

    Args:
        samples: the questions.
        headings: of the columns.
        title: of the figure.
        height: of a row, inches; an image is 1.9 at most.

    Returns:
        The figure, and its axes without those of the questions, (samples, columns).
    """
    widths = [1.1, *[1.0] * len(headings)]
    figure = Figure(figsize=(1.9 * sum(widths), height * len(samples) + 0.6), layout="constrained")
    figure.suptitle(textwrap.fill(title, round(22 * sum(widths))), fontsize=12, fontweight="bold")
    panels = figure.subplots(len(samples), 1 + len(headings), squeeze=False, width_ratios=widths)
    for axes, heading in zip(panels[0, 1:], headings, strict=True):
        axes.set_title(heading, fontsize=10)
    for sample, row in zip(samples, panels, strict=True):
        for axes in row:
            axes.set_axis_off()
        row[0].text(0, 0.62, textwrap.fill(sample.question, 20), fontsize=10, fontweight="bold", va="bottom")
        row[0].text(0, 0.54, textwrap.shorten(f"truth: {sample.answer}", 40), fontsize=10, va="top")
    return figure, panels[:, 1:]


def write_answer(axes: Axes, line: Line, name: str = "", down: float = 0.03) -> None:
    """Write an answer below an image, and whether it is right.

    Args:
        axes: of the image.
        line: of ``samples.jsonl``.
        name: who answers.
        down: how far below, as a share of the image's height.
    """
    scored, right = line["correct"] is not None, (line["correct"] or 0) >= 0.5
    mark = ("✓" if right else "✗") if scored else ""
    text = textwrap.shorten(f"{name} {mark} {line['answer']}".strip(), LONGEST)
    how: dict[str, Any] = {
        "ha": "center",
        "va": "top",
        "fontsize": 10,
        "color": RIGHT if right or not scored else WRONG,
    }
    axes.text(0.5, -down, text, transform=axes.transAxes, **how)


def _panel(axes: Axes, sample: Sample, line: Line) -> None:
    if (image := only_picture(sample.turn)) is None:
        return
    axes.imshow(kept_patches(image, [stage["kept"] for stage in line["stages"]], tuple(line["grid"])))
    write_answer(axes, line)
