"""The embedded VQA set: drawn scenes, one question each, and a question about another scene for controls."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from tokenprune.core.errors import ConfigError
from tokenprune.core.sample import Sample
from tokenprune.embedded.questions import QUESTION_TYPES, Question, all_questions
from tokenprune.embedded.scenes import IMAGE_SIZE, Layout, render, sample_layout
from tokenprune.tasks.base import Task, register_task


@register_task("scenes")
@dataclass(frozen=True, kw_only=True)
class Scenes(Task):
    """Questions about procedurally drawn scenes, the same number of each of six types.

    Sample i depends on ``seed``, ``split`` and i alone, so a longer set begins with the shorter one.

    Attributes:
        split: ``train``, ``validation`` or ``test``; no layout occurs in two of them.
        num_samples: questions, each about a scene of its own.
        seed: another seed draws other scenes of the same split.
        image_scale: pictures are shrunk by this factor, in (0, 1], and enlarged again. Questions that the unpruned
            model then fails need the detail: they are the hard ones, as VTC-Bench finds them.
    """

    split: Literal["train", "validation", "test"] = "test"
    num_samples: int = 240
    seed: int = 0
    image_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.image_scale <= 1:
            raise ConfigError(f"task.image_scale must be above 0 and at most 1, got {self.image_scale}")
        if self.num_samples < 1:
            raise ConfigError(f"task.num_samples must be at least 1, got {self.num_samples}")

    def samples(self) -> list[Sample]:
        """Draw the scenes and ask a question about each."""
        return [self._sample(index) for index in range(self.num_samples)]

    def _sample(self, index: int) -> Sample:
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        layout, question = _scene(rng, self.split, QUESTION_TYPES[index % len(QUESTION_TYPES)])
        other = self._other(layout, question, random.Random(f"{self.seed}/{self.split}/{index}/other"))
        return Sample.of(
            _coarse(render(layout, rng), self.image_scale),
            question.text,
            question.answer,
            id=f"{self.split}-{self.seed}-{index}",
            kind=question.type,
            boxes=tuple(_clip(layout[o].box) for o in question.objects),
            other_question=other.text,
            earlier=self._earlier(other),
        )

    def _other(self, layout: Layout, question: Question, rng: random.Random) -> Question:
        """A question about another scene of the split, of any type."""
        other = question
        while other.text == question.text:
            _, other = _scene(rng, self.split, rng.choice(QUESTION_TYPES))
        return other

    def _earlier(self, other: Question) -> tuple[tuple[str, str], ...]:
        """The turns that came before a question."""
        return ()


def _coarse(image: Image.Image, scale: float) -> Image.Image:
    """The picture without the detail that it loses if it is made smaller."""
    if scale == 1:
        return image
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _clip(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return max(0, x0), max(0, y0), min(IMAGE_SIZE, x1), min(IMAGE_SIZE, y1)


def _scene(rng: random.Random, split: str, kind: str) -> tuple[Layout, Question]:
    """A layout that allows a question of a type, and such a question."""
    while True:
        layout = sample_layout(rng, split)
        questions = [q for q in all_questions(layout, rng) if q.type == kind]
        if questions:
            return layout, rng.choice(questions)
