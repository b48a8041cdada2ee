"""Families whose images are cut into tiles, or are videos: pictures of several sizes, and prompts with them."""

from collections.abc import Sequence
from typing import Any

import torch

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.pictures import QUESTIONS, SIZES, clip, picture

CANVASES = [[40, 80], [80, 40], [80, 80]]


class Tiles(Family):
    """Families whose images are cut into tiles."""

    scopes: tuple[str, ...] = ("tile", "image")
    sizes: Sequence[tuple[int, int]] = SIZES

    @torch.no_grad()
    def fixed(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """Tokens that are the model's newline."""
        newline = getattr(model.base_model, "image_newline", torch.tensor(torch.nan))
        same = (self.embeds(model, inputs) == newline).all(-1)
        visual = self.placeholder(model, inputs["input_ids"])
        return [row[at].nonzero()[:, 0].tolist() for row, at in zip(same, visual, strict=True)]


class Mixed(Tiles):
    """Each second picture is a video of as many frames as any."""

    def ask(
        self,
        processor: Any,
        *images_per_row: int,
        seed: int = 0,
        side: str = "left",
        only: int | None = None,
        sizes: Any = None,
    ) -> Inputs:
        sizes, number, texts, images, videos = sizes or self.sizes, seed, [], [], []
        for row, count in enumerate(images_per_row):
            marks = ""
            for _ in range(count):
                video = (number - seed) % 2
                if only in (None, row) and video:
                    videos.append(clip(number))
                elif only in (None, row):
                    images.append(picture(number, *sizes[(number - seed) % len(sizes)]))
                marks += f"where {'<video>' if video else '<image>'}\n"
                number += 1
            texts.append("USER: " + "on the left " * row + marks + QUESTIONS[row] + " ASSISTANT:")
        texts = texts if only is None else texts[only : only + 1]
        how = {"padding": True, "padding_side": side, "return_tensors": "pt"}
        return dict(processor(images=images or None, videos=videos or None, text=texts, **how))
