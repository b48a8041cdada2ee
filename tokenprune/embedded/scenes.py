"""Procedurally drawn scenes: a few coloured shapes, some with a letter, on a noisy background.

A scene is fully known (which object, which colour, where), so that a question about it has one true answer and the
visual tokens that carry the evidence can be named. Layouts are assigned to a split by a hash of their content: a
layout of the training split cannot occur in validation or test, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 96  # pixels
PATCH_SIZE = 8  # pixels
GRID = IMAGE_SIZE // PATCH_SIZE  # visual tokens per side: 12
CELLS = 4  # objects sit on a jittered CELLS x CELLS raster
MAX_OBJECTS = 5
MIN_COVER = 0.2  # share of a patch's pixels that an object must cover to own it

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
    "cyan": (50, 200, 210),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
LETTERED_SHAPES = ("circle", "square")  # the shapes with room for a letter
LETTERS = "BCEFHKLMPRTXZ"  # no A: lower-cased it would be the article
SPLITS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}  # buckets of the layout hash


@dataclass(frozen=True)
class SceneObject:
    """One drawn thing.

    Attributes:
        color: a key of ``COLORS``.
        shape: one of ``SHAPES``.
        letter: one of ``LETTERS``, or None.
        cell: (row, column) on the ``CELLS`` x ``CELLS`` raster.
        center: (x, y) in pixels.
        radius: half of the drawn extent, pixels.
    """

    color: str
    shape: str
    letter: str | None
    cell: tuple[int, int]
    center: tuple[int, int]
    radius: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box (x0, y0, x1, y1) in pixels, ends excluded."""
        (x, y), r = self.center, self.radius
        return x - r, y - r, x + r + 1, y + r + 1

    @property
    def region(self) -> str:
        """Where the object is, in words: ``top left`` ... ``center`` ... ``bottom right``."""
        column = ("left", "", "right")[min(2, self.center[0] * 3 // IMAGE_SIZE)]
        row = ("top", "", "bottom")[min(2, self.center[1] * 3 // IMAGE_SIZE)]
        return f"{row} {column}".strip() or "center"


Layout = tuple[SceneObject, ...]


def split_of(layout: Layout) -> str:
    """The split that a layout belongs to, from a hash of its content."""
    content = sorted((o.cell, o.color, o.shape, o.letter or "") for o in layout)
    bucket = hashlib.sha256(repr(content).encode()).digest()[0] % 10
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def sample_layout(rng: random.Random, split: str, *, diverse: bool = False) -> Layout:
    """Draw a layout of 2 to ``MAX_OBJECTS`` objects, no two alike in both colour and shape.

    Args:
        rng: source of randomness; the same state gives the same layout.
        split: ``train``, ``validation`` or ``test``.
        diverse: 4 or 5 objects from all colours and shapes, so that knowing what occurs says little about what goes
            together; otherwise palettes are often small and repeat.
    """
    while True:
        layout = _propose(rng, diverse)
        if split_of(layout) == split:
            return layout


def _propose(rng: random.Random, diverse: bool) -> Layout:
    # A small palette repeats colours and shapes, so that counting needs looking.
    colors = rng.sample(list(COLORS), 8 if diverse else rng.choice((2, 3, 5, 8)))
    shapes = rng.sample(SHAPES, 6 if diverse else rng.choice((2, 3, 6)))
    number = min(rng.randint(4 if diverse else 2, MAX_OBJECTS), len(colors) * len(shapes))
    pairs = rng.sample([(c, s) for c in colors for s in shapes], number)
    cells = rng.sample([(i, j) for i in range(CELLS) for j in range(CELLS)], number)
    pitch = IMAGE_SIZE // CELLS
    objects = []
    for (color, shape), (row, column) in zip(pairs, cells, strict=True):
        x = column * pitch + pitch // 2 + rng.randint(-2, 2)
        y = row * pitch + pitch // 2 + rng.randint(-2, 2)
        letter = rng.choice(LETTERS) if shape in LETTERED_SHAPES and rng.random() < 0.6 else None
        radius = 10 if letter else rng.randint(8, 10)
        objects.append(SceneObject(color, shape, letter, (row, column), (x, y), radius))
    return tuple(objects)


def _polygon(shape: str, x: int, y: int, r: int) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    if shape == "diamond":
        return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if shape == "star":
        radii = [r if k % 2 == 0 else 0.45 * r for k in range(10)]
        angles = [math.pi / 2 + k * math.pi / 5 for k in range(10)]
        return [(x + q * math.cos(a), y - q * math.sin(a)) for q, a in zip(radii, angles, strict=True)]
    t = r / 2.6  # cross: half of the bar's width
    corners = [
        (-t, -r),
        (t, -r),
        (t, -t),
        (r, -t),
        (r, t),
        (t, t),
        (t, r),
        (-t, r),
        (-t, t),
        (-r, t),
        (-r, -t),
        (-t, -t),
    ]
    return [(x + dx, y + dy) for dx, dy in corners]


def _draw(draw: ImageDraw.ImageDraw, thing: SceneObject, fill: int | tuple[int, int, int]) -> None:
    (x, y), r = thing.center, thing.radius
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif thing.shape == "square":
        draw.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
    else:
        draw.polygon(_polygon(thing.shape, x, y, r), fill=fill)


_FONT = ImageFont.load_default(size=14)


def render(layout: Layout, rng: random.Random) -> Image.Image:
    """Draw a layout.

    Args:
        layout: the objects.
        rng: source of the background's colour, gradient and noise.

    Returns:
        An RGB image of ``IMAGE_SIZE`` x ``IMAGE_SIZE`` pixels.
    """
    noise = np.random.default_rng(rng.getrandbits(63))
    ramp = np.linspace(-1, 1, IMAGE_SIZE)
    gradient = ramp[None, :, None] * rng.uniform(-25, 25) + ramp[:, None, None] * rng.uniform(-25, 25)
    base = np.array([rng.randint(20, 110) for _ in range(3)])
    pixels = base + gradient + noise.normal(0, 6, (IMAGE_SIZE, IMAGE_SIZE, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for thing in layout:
        _draw(draw, thing, COLORS[thing.color])
        if thing.letter:
            draw.text(thing.center, thing.letter, fill=(0, 0, 0), font=_FONT, anchor="mm")
    return image


def object_tokens(layout: Layout) -> np.ndarray:
    """Which object each visual token shows.

    Args:
        layout: the objects.

    Returns:
        (``GRID * GRID``,) int array in raster order: index into ``layout``, or -1 for background.
    """
    canvas = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    draw = ImageDraw.Draw(canvas)
    for index, thing in enumerate(layout):
        _draw(draw, thing, index + 1)
    raster = np.asarray(canvas).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).transpose(0, 2, 1, 3)
    patches = raster.reshape(GRID * GRID, PATCH_SIZE * PATCH_SIZE)
    cover = np.stack([(patches == index + 1).mean(1) for index in range(len(layout))], 1)
    return np.where(cover.max(1) >= MIN_COVER, cover.argmax(1), -1)
