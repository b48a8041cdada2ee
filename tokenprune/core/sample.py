"""A question, and what it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenprune.core.turn import Drawn, Turn

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Sample:
    """A question, and what it is asked about.

    Attributes:
        id: unique within the task.
        turn: what the user's message holds: text, pictures, videos.
        question: what relevance is measured against: no suffix that says what form the answer should have.
        answer: the truth in words, for journals and pictures; scoring is the task's.
        kind: type of the question, for per-type accuracy.
        unit: samples of one unit, such as the two questions about a picture of MME, are drawn together in tests; empty
            if the sample is its own.
        boxes: (x0, y0, x1, y1) in pixels, ends excluded, of what the question is about; empty if unknown or nothing.
        other_question: one that is not asked, for controls; empty if there is none.
        earlier: (question, answer) of the turns about this image that came before.
        place: where it is written, for messages, such as a file and its line; empty if nowhere.
        row: its number in the data set, for the task that made it; -1 if there is none.
    """

    id: str
    turn: Turn
    question: str
    answer: str = ""
    kind: str = ""
    unit: str = ""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    other_question: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    place: str = ""
    row: int = -1

    @classmethod
    def of(cls, image: Image | None, question: str, answer: str = "", *, id: str = "", **fields: Any) -> Sample:
        """Make a sample of one picture in memory and a question that is asked as it is.

        Args:
            image: RGB; None for a question about nothing that is shown.
            question: as asked.
            answer: the truth.
            id: unique within the task.
            **fields: others.
        """
        return cls(id, Drawn(image, question), question, answer, **fields)
