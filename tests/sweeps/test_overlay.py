"""Pixels of the pictures of kept tokens."""

import numpy as np
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.sweeps.overlay import draw_kept, kept_patches


def test_kept_patches_keep_their_colour_and_dropped_ones_fade():
    image = Image.new("RGB", (40, 20), (200, 0, 0))
    drawn = kept_patches(image, [[1]], (1, 2))
    assert drawn.shape == (192, 384, 3)
    assert (drawn[:, 192:] == (200, 0, 0)).all()
    assert len(np.unique(drawn[:, :192])) == 1  # grey
    assert (kept_patches(image, [], (1, 2)) == (200, 0, 0)).all()


def test_patches_that_left_earlier_are_fainter():
    image = Image.new("RGB", (30, 10), (40, 40, 40))
    first, second, third = kept_patches(image, [[1, 2], [2]], (1, 3))[0, 64::128, 0].tolist()
    assert first > second > third == 40


def test_images_of_several_rasters(tmp_path):
    """Each line says what its own image's raster is; one without is left blank."""
    samples = [Sample.of(Image.new("RGB", (20, 20), (0, 0, 200)), "what?", "x", id=str(n)) for n in range(3)]
    lines = {
        str(n): {"grid": grid, "stages": [{"kept": [0]}], "answer": "x", "correct": 1.0}
        for n, grid in enumerate(([2, 2], [3, 5], None))
    }
    draw_kept(samples, {"1 token": lines}, "title", tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as picture:
        thirds = np.array_split(np.asarray(picture.convert("RGB")).astype(int), 3)
    blue = [int(((part[..., 2] - part[..., 0]) > 150).sum()) for part in thirds]
    assert blue[0] > 2 * blue[1] > 0 == blue[2]
