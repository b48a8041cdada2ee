"""Pictures padded to squares, as LLaVA-1.5's own evaluation does it.

Paper: Improved Baselines with Visual Instruction Tuning (Liu et al., 2024), https://arxiv.org/abs/2310.03744
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from tokenprune.core.clip import Clip
from tokenprune.core.sample import Sample
from tokenprune.core.turn import Turn, picture_size

if TYPE_CHECKING:
    from tokenprune.core.turn import Part

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Squared:
    """A turn whose pictures are padded when they are opened; videos stay as they are.

    Attributes:
        turn: as it was.
        colour: of the padding, RGB in 0 to 255.
    """

    turn: Turn
    colour: Colour

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of each picture or video its kind and (width, height) in pixels."""
        return tuple((kind, (max(size),) * 2 if kind == "image" else size) for kind, size in self.turn.shape)

    @property
    def length(self) -> int:
        """Characters of text."""
        return self.turn.length

    @property
    def text(self) -> str:
        """All that is written."""
        return self.turn.text

    @property
    def digest(self) -> str:
        """Hash of what is padded."""
        return self.turn.digest

    def parts(self) -> tuple[Part, ...]:
        """The parts of the turn, with padded pictures."""
        return tuple(
            part if isinstance(part, str | Clip) else pad_to_square(part, self.colour) for part in self.turn.parts()
        )


def square_sample(sample: Sample, colour: Colour) -> Sample:
    """The sample with its pictures padded to squares, and its boxes where they then are.

    Args:
        sample: of a task.
        colour: of the padding, RGB in 0 to 255.
    """
    left, top = _offset(picture_size(sample.turn) or (0, 0))
    boxes = tuple((x0 + left, y0 + top, x1 + left, y1 + top) for x0, y0, x1, y1 in sample.boxes)
    return replace(sample, turn=Squared(sample.turn, colour), boxes=boxes)


def pad_to_square(image: Image.Image, colour: Colour) -> Image.Image:
    """The picture in the middle of a square as wide as its longer side; itself if it is square.

    Args:
        image: RGB.
        colour: of the padding, RGB in 0 to 255.
    """
    if image.width == image.height:
        return image
    square = Image.new("RGB", (max(image.size),) * 2, colour)
    square.paste(image, _offset(image.size))
    return square


def _offset(size: tuple[int, int]) -> tuple[int, int]:
    """Where the picture is in its square, (left, top) pixels."""
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2
