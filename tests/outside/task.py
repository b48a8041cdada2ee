"""A task: is a picture red or blue?"""

from dataclasses import dataclass

from PIL import Image

from tokenprune.core.sample import Sample
from tokenprune.tasks.base import Task, register_task


@register_task("two_colors")
@dataclass(frozen=True, kw_only=True)
class TwoColors(Task):
    """Pictures of one color."""

    num_samples: int = 4

    def samples(self):
        colors = ["red", "blue"] * self.num_samples
        pictures = [Image.new("RGB", (96, 96), color) for color in colors[: self.num_samples]]
        return [
            Sample.of(picture, "what color is it ?", color, id=str(number))
            for number, (picture, color) in enumerate(zip(pictures, colors, strict=False))
        ]

    def score(self, sample, answer):
        return float(sample.answer in answer)
