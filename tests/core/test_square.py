"""Pictures in the middle of squares."""

import numpy as np
import pytest
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.core.square import pad_to_square, square_sample
from tokenprune.core.turn import only_picture, picture_size

COLOUR = (1, 2, 3)


@pytest.mark.parametrize(("size", "at"), [((6, 2), (0, 2)), ((2, 7), (2, 0)), ((5, 4), (0, 0))])
def test_a_picture_is_in_the_middle(size, at):
    image = Image.fromarray(np.random.default_rng(0).integers(9, 255, (size[1], size[0], 3)).astype(np.uint8))
    square = np.asarray(pad_to_square(image, COLOUR))
    left, top = at
    assert square.shape == (max(size), max(size), 3)
    inside = square[top : top + size[1], left : left + size[0]]
    assert np.array_equal(inside, np.asarray(image))
    assert (square == COLOUR).all(2).sum() == max(size) ** 2 - size[0] * size[1]


def test_a_square_stays():
    image = Image.new("RGB", (4, 4))
    assert pad_to_square(image, COLOUR) is image


def test_boxes_move_with_the_picture():
    image = Image.new("RGB", (8, 4))
    image.paste("red", (1, 1, 3, 3))
    sample = Sample.of(image, "?", boxes=((1, 1, 3, 3),))
    padded = square_sample(sample, COLOUR)
    assert padded.boxes == ((1, 3, 3, 5),)
    assert np.unique(np.asarray(only_picture(padded.turn).crop(padded.boxes[0])).reshape(-1, 3), axis=0).tolist() == [
        [255, 0, 0]
    ]
    assert picture_size(padded.turn) == only_picture(padded.turn).size == (8, 8)
    again = square_sample(padded, COLOUR)
    assert again.boxes == padded.boxes
    assert only_picture(again.turn).tobytes() == only_picture(padded.turn).tobytes()
    assert (padded.turn.text, padded.turn.length) == ("?", 1)


def test_text_alone_stays():
    padded = square_sample(Sample.of(None, "?"), COLOUR)
    assert (padded.turn.shape, padded.turn.parts()) == ((), ("?",))
