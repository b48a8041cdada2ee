"""Turns in memory: what is known of them without opening, and what they hold."""

import pytest
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.core.turn import Drawn, hash_parts, only_picture, picture_size


def test_a_picture_and_a_question():
    picture = Image.new("RGB", (6, 4), "red")
    turn = Drawn(picture, "what ?")
    assert turn.shape == (("image", (6, 4)),)
    assert (turn.length, turn.text) == (6, "what ?")
    assert turn.parts() == (picture, "what ?")
    assert picture_size(turn) == (6, 4)
    assert only_picture(turn) is picture


def test_text_alone():
    turn = Drawn(None, "what ?")
    assert turn.shape == ()
    assert turn.parts() == ("what ?",)
    assert picture_size(turn) is None
    assert only_picture(turn) is None


def test_a_digest_sees_all_that_is_said_and_shown():
    red, blue = (Image.new("RGB", (6, 4), color) for color in ("red", "blue"))
    turned = Image.new("RGB", (4, 6), "red")
    turns = [Drawn(red, "a"), Drawn(red, "b"), Drawn(blue, "a"), Drawn(turned, "a"), Drawn(None, "a")]
    assert len({turn.digest for turn in turns}) == len(turns)
    assert Drawn(red.copy(), "a").digest == turns[0].digest


def test_where_one_part_ends_matters():
    assert hash_parts("ab", "c") != hash_parts("a", "bc")
    assert hash_parts("a") == hash_parts(b"a")


def test_a_sample_of_a_picture():
    sample = Sample.of(None, "what ?", "x", id="7", unit="u")
    assert (sample.id, sample.question, sample.answer, sample.unit) == ("7", "what ?", "x", "u")
    assert sample.turn.text == "what ?"


class Several(Drawn):
    @property
    def shape(self):
        return (("image", (1, 1)), ("image", (1, 1)))


class Video(Drawn):
    @property
    def shape(self):
        return (("video", (1, 1)),)


@pytest.mark.parametrize("kind", [Several, Video])
def test_only_one_picture_is_the_only_picture(kind):
    assert only_picture(kind(Image.new("RGB", (1, 1)), "?")) is None
