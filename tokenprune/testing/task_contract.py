"""``TaskContract``: what every task promises, whoever wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tokenprune.core.clip import Clip
from tokenprune.core.sample import Sample
from tokenprune.core.turn import picture_size
from tokenprune.embedded.model import load_embedded
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.tasks.base import MEAN, TASKS, Task

ASKED = 4  # samples that a model is asked


class TaskContract:
    """Promises of a task: its samples are the same each time, can be asked, and their own answers are right.

    Subclass it as ``class TestMine(TaskContract)`` with ``task = "mine"``.

    Attributes:
        task: name under which it is registered.
        options: with which it is made; best a few samples.
    """

    task: ClassVar[str]
    options: Mapping[str, Any] = {}

    def create(self, **more: Any) -> Task:
        """A new task with the options, and some more."""
        return TASKS.get(self.task)(**{**self.options, **more})

    def test_its_options_are_the_fields_of_a_frozen_dataclass(self) -> None:
        """Two tasks of the same options are equal, and their options cannot be changed."""
        task = self.create()
        assert dataclasses.is_dataclass(task)
        assert task == self.create()
        assert hash(task) == hash(self.create())

    def test_samples_are_the_same_on_each_call(self) -> None:
        """Samples of one task, and of another with the same options, do not differ."""
        task = self.create()
        first = [content(sample) for sample in task.samples()]
        assert first
        assert [content(sample) for sample in task.samples()] == first
        assert [content(sample) for sample in self.create().samples()] == first

    def test_ids_are_unique(self) -> None:
        """Each sample has an id of its own, which is text."""
        ids = [sample.id for sample in self.create().samples()]
        assert all(isinstance(each, str) and each for each in ids)
        assert len(set(ids)) == len(ids)

    def test_samples_hold_what_they_say(self) -> None:
        """Turns hold what their shape says, pictures are RGB, and boxes lie within the picture."""
        for sample in self.create().samples():
            check_turn(sample)
            assert isinstance(sample.question, str), sample.id
            assert sample.question.strip(), sample.id
            assert isinstance(sample.answer, str), sample.id
            assert isinstance(sample.kind, str), sample.id
            assert sample.other_question != sample.question, sample.id
            assert all(len(turn) == 2 and all(turn) for turn in sample.earlier), sample.id
            width, height = picture_size(sample.turn) or (0, 0)
            for x0, y0, x1, y1 in sample.boxes:
                assert 0 <= x0 < x1 <= width, sample.id
                assert 0 <= y0 < y1 <= height, sample.id

    def test_its_own_answers_are_right(self) -> None:
        """The true answer scores 1, and no answer scores less, within 0 and 1, wherever a sample has a score."""
        task = self.create()
        for sample in task.samples():
            if (right := task.score(sample, task.finish(sample.answer))) is not None:
                assert right == 1.0, sample.id
                assert not task.unparsed(sample, sample.answer), sample.id
            for wrong in ("", "neither this nor that"):
                assert 0.0 <= (task.score(sample, wrong) or 0.0) <= 1.0, sample.id
                assert isinstance(task.unparsed(sample, wrong), bool), sample.id
            assert right is None or (task.score(sample, "") or 0.0) < 1.0, sample.id

    def test_its_primary_metric_is_one_that_it_gives(self) -> None:
        """The metrics of all true answers are numbers, and the primary one is among them or is the mean score."""
        task = self.create()
        found = task.metrics([(sample, task.finish(sample.answer)) for sample in task.samples()])
        assert all(isinstance(value, int | float) for value in found.values())
        assert task.primary in {MEAN, *found}
        assert task.scale > 0
        assert task.max_new_tokens >= 1
        assert isinstance(task.title, str)
        assert task.fingerprint() == self.create().fingerprint()

    def test_fewer_samples_are_the_first_of_more(self) -> None:
        """A task with ``num_samples`` begins the same, however many there are."""
        if "num_samples" not in {field.name for field in dataclasses.fields(self.create())}:
            return
        more = [content(sample) for sample in self.create().samples()]
        fewer = max(1, len(more) // 2)
        assert [content(sample) for sample in self.create(num_samples=fewer).samples()] == more[:fewer]

    def test_a_model_can_be_asked(self) -> None:
        """A session with the embedded model makes prompts of the samples, and reads the same questions in them."""
        samples = self.create().samples()[:ASKED]
        session = Session(adapter_for(*load_embedded()))
        prepared = session.prepare(samples)
        assert prepared.questions == [sample.question for sample in samples]
        assert len(session.generate(prepared.inputs, max_new_tokens=1).output) == len(samples)


def content(sample: Sample) -> tuple[Any, ...]:
    """All that a sample holds, to be compared."""
    fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    turn = fields.pop("turn")
    return turn.shape, turn.length, turn.digest, *fields.items()


def check_turn(sample: Sample) -> None:
    """Assert that a turn, opened, holds what it says without being opened."""
    parts = sample.turn.parts()
    text = [part for part in parts if isinstance(part, str)]
    shown = [part for part in parts if not isinstance(part, str)]
    assert sample.turn.length == sum(map(len, text)), sample.id
    assert all(each in sample.turn.text for each in text), sample.id
    kinds = ["video" if isinstance(part, Clip) else "image" for part in shown]
    assert sample.turn.shape == tuple(zip(kinds, (part.size for part in shown), strict=True)), sample.id
    assert all(isinstance(part, Clip) or part.mode == "RGB" for part in shown), sample.id
