"""One question about one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    Attributes:
        id: unique within the task.
        image: RGB.
        question: as asked, without an answer-format suffix.
        answer: the truth.
        kind: type of the question, for per-type accuracy.
        boxes: (x0, y0, x1, y1) in pixels, ends excluded, of what the question is about; empty if unknown or nothing.
        other_question: one that is not asked, for controls; empty if there is none.
        earlier: (question, answer) of the turns about this image that came before.
        place: where it is written, for messages, such as a file and its line; empty if nowhere.
    """

    id: str
    image: Image
    question: str
    answer: str
    kind: str = ""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    other_question: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    place: str = ""
