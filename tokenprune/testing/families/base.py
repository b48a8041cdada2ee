"""``Family``: one kind of model as the contracts need it, and how most kinds ask and number a prompt."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.testing.pictures import IMAGE_SIZE, QUESTIONS, picture

Inputs = dict[str, Any]  # what a processor gives


class Family:
    """One kind of model. What is here holds for those that follow the conventions; a family overrides what differs.

    Attributes:
        policies: positions that its pruners may have before the LLM.
        inside: and inside it.
        token: of an image in a prompt.
        sizes: height and width of each picture in turn, pixels.
        scopes: of its adapter, as far as ``ask`` makes inputs for them; the first is the default.
        chat: whether its processor has a chat template.
        tower: kind of its vision tower, by which the tests choose a text tower; all are as wide.
        nominal: options of ``ask`` for an image that has as many tokens as the ``ModelSpec`` says.
    """

    policies: tuple[str, ...] = ("original", "repacked")
    inside: tuple[str, ...] = ("original", "repacked")
    token = "<image>"
    sizes: Sequence[tuple[int, int]] = ((IMAGE_SIZE, IMAGE_SIZE),)
    scopes: tuple[str, ...] = ("image",)
    chat = True
    tower = "clip"
    nominal: ClassVar[dict[str, Any]] = {}

    def make(self, attention: str) -> tuple[Any, Any]:
        """A new (model, processor): random weights, no end token, and it never says an image token."""
        raise NotImplementedError

    @functools.cache  # noqa: B019 - families live as long as the tests
    def build(self, attention: str) -> tuple[Any, Any]:
        """Shared (model, processor): leave them as they are."""
        return self.make(attention)

    def ask(
        self,
        processor: Any,
        *images_per_row: int,
        seed: int = 0,
        side: str = "left",
        only: int | None = None,
        sizes: Any = None,
    ) -> Inputs:
        """Inputs of a batch, padded; rows differ in their numbers of images and in their lengths.

        Args:
            processor: of the family.
            *images_per_row: images of each row.
            seed: of the first picture.
            side: of the padding.
            only: this row of the batch by itself, without padding.
            sizes: height and width of each picture in turn, pixels; the family's own if None.
        """
        sizes = sizes or self.sizes
        texts = [
            "USER: " + "on the left " * row + f"where {self.token}\n" * number + QUESTIONS[row] + " ASSISTANT:"
            for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index, *sizes[index % len(sizes)]) for index in range(sum(images_per_row))]
        if only is not None:
            before = sum(images_per_row[:only])
            texts, images = texts[only : only + 1], images[before : before + images_per_row[only]]
        return dict(processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt"))

    def placeholder(self, model: Any, ids: Tensor) -> Tensor:
        """Bool, like ``ids``: where visual tokens go."""
        tokens = [getattr(model.config, f"{name}_token_id", None) for name in ("image", "video")]
        return torch.isin(ids, torch.tensor([token for token in tokens if token is not None]))

    @torch.no_grad()
    def embeds(self, model: Any, inputs: Inputs) -> Tensor:
        """(B, L, D), the language model's input embeddings."""
        x = model.get_input_embeddings()(inputs["input_ids"])
        for name, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if inputs.get(pixels) is not None:
                features = flat(self.encoded(model, name, inputs).pooler_output)
                x[inputs["input_ids"] == getattr(model.config, f"{name}_token_id")] = features.to(x.dtype)
        return x

    def encoded(self, model: Any, modality: str, inputs: Inputs) -> Any:
        """What the model's own encoder gives."""
        encoder = getattr(model.base_model, f"get_{modality}_features")
        names = [name for name in inspect.signature(encoder).parameters if name in inputs]
        return encoder(**{name: inputs[name] for name in names}, return_dict=True)

    def row_positions(self, model: Any, inputs: Inputs) -> Callable[[int, int], Tensor]:
        """(row, length) to the position ids of that row and what follows it, without padding, (..., 1, length)."""
        return dense

    def allowed(self, model: Any, ids: Tensor, prompt: int) -> Tensor:
        """(L, L) bool, which tokens a row's tokens may see; sliding windows aside.

        Args:
            model: of the family.
            ids: (L,) of the row and what follows it, without padding.
            prompt: how many of them are the prompt's.
        """
        return torch.ones(len(ids), len(ids), dtype=torch.bool).tril()

    def closed(self, number: Tensor, visual: Tensor, before: Tensor, alive: Tensor) -> Tensor:
        """Position ids without gaps where tokens leave.

        Args:
            number: (..., 1, L) of a row.
            visual: (L,) bool, visual tokens.
            before: (L,) bool, what was there before some left.
            alive: (L,) bool, and after.
        """
        return number - (before & ~alive).long().cumsum(0)

    def added(self, model: Any, inputs: Inputs) -> list[Tensor]:
        """(B, L, D) for each of the first layers: what is added to the hidden states behind it."""
        return []

    def fixed(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """For each row, the numbers of its visual tokens that never leave."""
        return [[] for _ in inputs["input_ids"]]

    def items(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """For each row, how many visual tokens of each of its images may leave; an image is a run of placeholders."""
        counted = []
        for ids, fixed in zip(inputs["input_ids"], self.fixed(model, inputs), strict=True):
            visual = self.placeholder(model, ids)
            starts = visual.diff(prepend=torch.tensor([False])) & visual
            free = torch.ones(int(visual.sum()), dtype=torch.bool)
            free[fixed] = False
            image = starts.long().cumsum(0)[visual][free] - 1
            counted.append(torch.bincount(image).tolist())
        return counted

    def counts(self, model: Any, inputs: Inputs, keep: int) -> list[tuple[int, int]]:
        """For each row, (visual tokens before, after) if ``keep`` of each image stay."""
        return [(sum(row), sum(min(keep, image) for image in row)) for row in self.items(model, inputs)]


def flat(features: Any) -> Tensor:
    """(T, D) of whatever an encoder gives: a tensor with the tokens in its last but one axis, or a list of such."""
    if isinstance(features, torch.Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([flat(part) for part in features])


def dense(row: int, length: int) -> Tensor:
    """Positions that are counted."""
    return torch.arange(length)[None]
