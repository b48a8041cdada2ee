"""What a user's message holds: text, pictures and videos, opened only when a model is asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from tokenprune.core.clip import Clip as Clip

if TYPE_CHECKING:
    from PIL.Image import Image

    Part = str | Image | Clip


class Turn(Protocol):
    """A user's message. Only ``parts`` opens pictures and videos; all else is known from headers and bytes.

    Attributes:
        shape: of each picture or video its kind, ``image`` or ``video``, and its (width, height) in pixels, from the
            header: ``(("image", (640, 480)),)``; empty for text alone. Turns are put in batches by it.
        length: characters of text.
        text: all that is written, without pictures and videos.
        digest: hash of text and encoded media bytes.
    """

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of each picture or video its kind and (width, height) in pixels."""

    @property
    def length(self) -> int:
        """Characters of text."""

    @property
    def text(self) -> str:
        """All that is written."""

    @property
    def digest(self) -> str:
        """Hash of text and encoded media bytes."""

    def parts(self) -> tuple[Part, ...]:
        """What is said and shown, in order: text, RGB pictures that are opened now, and clips."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A turn that is in memory: a picture, if there is one, and then a question.

    Attributes:
        image: RGB; None for text alone.
        question: as it is asked.
    """

    image: Image | None
    question: str

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the picture its kind and (width, height) in pixels."""
        return () if self.image is None else (("image", self.image.size),)

    @property
    def length(self) -> int:
        """Characters of the question."""
        return len(self.question)

    @property
    def text(self) -> str:
        """The question."""
        return self.question

    @cached_property
    def digest(self) -> str:
        """Hash of question and picture."""
        if self.image is None:
            return hash_parts(self.question)
        return hash_parts(self.question, repr((self.image.mode, self.image.size)), self.image.tobytes())

    def parts(self) -> tuple[Part, ...]:
        """The picture, and then the question."""
        return (self.question,) if self.image is None else (self.image, self.question)


def hash_parts(*parts: str | bytes) -> str:
    """Hash of several parts, 32 hexadecimal digits; where one part ends matters, too."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)
    return total.hexdigest()[:32]


def picture_size(turn: Turn) -> tuple[int, int] | None:
    """The (width, height) in pixels of the only picture of a turn, without opening it; None unless there is one."""
    if len(turn.shape) != 1 or turn.shape[0][0] != "image":
        return None
    size: tuple[int, int] = turn.shape[0][1]
    return size


def only_picture(turn: Turn) -> Image | None:
    """The only picture of a turn, opened; None if it shows nothing, several things or a video."""
    if picture_size(turn) is None:
        return None
    return next(part for part in turn.parts() if not isinstance(part, str | Clip))
