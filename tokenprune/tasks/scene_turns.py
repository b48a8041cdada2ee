"""Two questions about one drawn scene: what is left for the second if visual tokens were chosen for the first."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenprune.embedded.questions import Question, all_questions
from tokenprune.embedded.scenes import Layout
from tokenprune.tasks.base import register_task
from tokenprune.tasks.scenes import Scenes


@register_task("scene_turns")
@dataclass(frozen=True, kw_only=True)
class SceneTurns(Scenes):
    """The scenes and questions of ``scenes``, each of which is the second about its scene.

    The first, of any type that the scene allows, is what conditionings with ``question: other`` choose tokens for.

    Attributes:
        dialogue: whether the prompt holds the first question and its true answer, too; else tokens alone come from the
            first turn. The embedded model never saw a dialogue in training.
    """

    dialogue: bool = False

    def _other(self, layout: Layout, question: Question, rng: random.Random) -> Question:
        """Another question about this scene, each type that it allows equally likely."""
        others = [other for other in all_questions(layout, rng) if other.text != question.text]
        kind = rng.choice(sorted({other.type for other in others}))
        return rng.choice([other for other in others if other.type == kind])

    def _earlier(self, other: Question) -> tuple[tuple[str, str], ...]:
        """The first question, in a dialogue."""
        return ((other.text, other.answer),) if self.dialogue else ()
