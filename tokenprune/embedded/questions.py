"""Questions with one true answer about a drawn scene, and which objects hold the evidence."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenprune.embedded.scenes import COLORS, SHAPES, Layout

QUESTION_TYPES = ("existence", "color", "shape", "count", "position", "letter")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        type: one of ``QUESTION_TYPES``.
        text: the English question.
        answer: one or two words; a letter is upper case, a number a digit.
        objects: indices into the layout of the objects that the question is about; empty if there are none.
    """

    type: str
    text: str
    answer: str
    objects: tuple[int, ...]


def article(word: str) -> str:
    """``a`` or ``an``, as the word wants."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """Plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def all_questions(layout: Layout, rng: random.Random) -> list[Question]:
    """Every question that can be asked of a layout; negative ones (``no``, ``0``) are drawn from ``rng``."""
    return [*_attribute_questions(layout), *_count_questions(layout, rng), *_existence_questions(layout, rng)]


def _attribute_questions(layout: Layout) -> list[Question]:
    colors, shapes = [o.color for o in layout], [o.shape for o in layout]
    questions = []
    for index, o in enumerate(layout):
        name, about = f"{o.color} {o.shape}", (index,)
        questions.append(Question("position", f"Where is the {name}?", o.region, about))
        if shapes.count(o.shape) == 1:
            questions.append(Question("color", f"What color is the {o.shape}?", o.color, about))
        if colors.count(o.color) == 1:
            questions.append(Question("shape", f"What shape is the {o.color} thing?", o.shape, about))
        if o.letter:
            questions.append(Question("letter", f"What letter is on the {name}?", o.letter, about))
    return questions


def _count_questions(layout: Layout, rng: random.Random) -> list[Question]:
    questions = [Question("count", "How many things are there?", str(len(layout)), tuple(range(len(layout))))]
    present_shapes, present_colors = {o.shape for o in layout}, {o.color for o in layout}
    for shape in SHAPES:
        about = tuple(i for i, o in enumerate(layout) if o.shape == shape)
        if about or rng.random() < 0.5 / len(set(SHAPES) - present_shapes):
            questions.append(Question("count", f"How many {plural(shape)} are there?", str(len(about)), about))
    for color in COLORS:
        about = tuple(i for i, o in enumerate(layout) if o.color == color)
        if about or rng.random() < 0.5 / len(set(COLORS) - present_colors):
            questions.append(Question("count", f"How many {color} things are there?", str(len(about)), about))
    return questions


def _existence_questions(layout: Layout, rng: random.Random) -> list[Question]:
    """As many ``no`` as ``yes``; half of the ``no`` ask for a present colour or shape in the wrong combination."""
    questions = []
    have = {(o.color, o.shape) for o in layout}
    for index, o in enumerate(layout):
        questions.append(_existence(o.color, o.shape, "yes", (index,)))
        while True:
            hard = rng.random() < 0.7
            color = rng.choice(layout).color if hard else rng.choice(list(COLORS))
            shape = rng.choice(SHAPES) if not hard or rng.random() < 0.5 else rng.choice(layout).shape
            if (color, shape) not in have:
                questions.append(_existence(color, shape, "no", ()))
                break
            if all((c, s) in have for c in {x.color for x in layout} for s in SHAPES):
                break
    return questions


def _existence(color: str, shape: str, answer: str, about: tuple[int, ...]) -> Question:
    return Question("existence", f"Is there {article(color)} {color} {shape}?", answer, about)


def sample_questions(layout: Layout, rng: random.Random, number: int) -> list[Question]:
    """Draw questions, each type that the layout allows equally likely, without repeating one while others are left."""
    by_type: dict[str, list[Question]] = {}
    for question in all_questions(layout, rng):
        by_type.setdefault(question.type, []).append(question)
    for questions in by_type.values():
        rng.shuffle(questions)
    picked: list[Question] = []
    while len(picked) < number:
        kind = rng.choice(list(by_type))
        questions = by_type[kind]
        picked.append(questions[sum(q.type == kind for q in picked) % len(questions)])
    return picked
