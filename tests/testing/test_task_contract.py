"""``TaskContract`` catches tasks that break a promise: each of these breaks one."""

from dataclasses import dataclass, replace
from itertools import count

import pytest
from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.core.turn import Drawn, only_picture
from tokenprune.tasks.base import Task
from tokenprune.testing import TaskContract

CALLS = count()


@dataclass(frozen=True, kw_only=True)
class Whole(Task):
    """Of squares, whose colour is asked."""

    num_samples: int = 4

    def samples(self):
        image = Image.new("RGB", (32, 32), "red")
        return [
            Sample.of(image, "what color is it ?", "red", id=str(number), boxes=((0, 0, 32, 32),))
            for number in range(self.num_samples)
        ]


def changed(**fields):
    """A task whose samples differ from those above."""

    class Broken(Whole):
        def samples(self):
            return [replace(s, **{n: f(s) for n, f in fields.items()}) for s in super().samples()]

    return Broken


class Generous(Whole):
    def score(self, sample, answer):
        return 1.0


class Strict(Whole):
    def score(self, sample, answer):
        return 0.0


class Last(Whole):
    """Takes the last of ten, not the first."""

    def samples(self):
        return Whole(num_samples=10).samples()[-self.num_samples :]


class Mutable(Whole):
    __hash__ = None


def grey(sample):
    return Drawn(only_picture(sample.turn).convert("L"), sample.question)


def marked(sample):
    return Drawn(only_picture(sample.turn), "<image> ?")


@dataclass(frozen=True, eq=False)
class Larger(Drawn):
    """Says that its picture is larger than it is."""

    @property
    def shape(self):
        return (("image", (64, 64)),)


def larger(sample):
    return Larger(only_picture(sample.turn), sample.question)


BROKEN = {
    "other samples each time": (
        changed(question=lambda s: f"{next(CALLS)} ?"),
        "test_samples_are_the_same_on_each_call",
    ),
    "one id": (changed(id=lambda s: "1"), "test_ids_are_unique"),
    "a number for an id": (changed(id=lambda s: int(s.id)), "test_ids_are_unique"),
    "grey": (changed(turn=grey), "test_samples_hold_what_they_say"),
    "a size that is not the picture's": (changed(turn=larger), "test_samples_hold_what_they_say"),
    "no question": (changed(question=lambda s: " "), "test_samples_hold_what_they_say"),
    "an answer that is no text": (changed(answer=lambda s: 3), "test_samples_hold_what_they_say"),
    "a box beyond the image": (changed(boxes=lambda s: ((0, 0, 33, 32),)), "test_samples_hold_what_they_say"),
    "no other question": (changed(other_question=lambda s: s.question), "test_samples_hold_what_they_say"),
    "all is right": (Generous, "test_its_own_answers_are_right"),
    "nothing is right": (Strict, "test_its_own_answers_are_right"),
    "fewer are others": (Last, "test_fewer_samples_are_the_first_of_more"),
    "a mark in a question": (changed(turn=marked), "test_a_model_can_be_asked"),
}


def contract(task):
    return type("Contract", (TaskContract,), {"create": lambda self, **more: task(**more)})()


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_task_is_caught(what):
    task, promise = BROKEN[what]
    with pytest.raises((AssertionError, ValueError)):
        getattr(contract(task), promise)()
    getattr(contract(Whole), promise)()


def test_a_task_that_cannot_be_compared_is_caught():
    with pytest.raises(TypeError, match="unhashable"):
        contract(Mutable).test_its_options_are_the_fields_of_a_frozen_dataclass()
