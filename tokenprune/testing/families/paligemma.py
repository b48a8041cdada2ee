"""A tiny PaliGemma and a tiny PaliGemma 2 of random weights, and their processor: 9 visual tokens an image."""

import warnings
from typing import Any

from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.families.gemma3 import PIXELS, scaled, siglip_config
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.pictures import QUESTIONS, picture

PATCH, TOKENS = 16, 9


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenizers import AddedToken

    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("\n", "answer", "en")])
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    images.image_seq_length = TOKENS
    return PaliGemmaProcessor(images, tiny_tokenizer())


def tiny_paligemma(attention: str = "sdpa", decoder: str = "gemma", **text: Any) -> Any:
    """A new model of this family with random weights."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vocabulary = len(tiny_processor().tokenizer)  # which the processor makes larger
    config = PaliGemmaConfig(
        vision_config=siglip_config(patch_size=PATCH),
        text_config=text_config(decoder, vocabulary, head_dim=16, **text),
        image_token_index=tiny_tokenizer().convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return scaled(finish(PaliGemmaForConditionalGeneration(config), attention))


class PaliGemma(Family):
    """PaliGemma, whose whole prompt sees itself."""

    chat, tower = False, "siglip"

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_paligemma(attention), tiny_processor()

    def ask(
        self,
        processor: Any,
        *images_per_row: int,
        seed: int = 0,
        side: str = "left",
        only: int | None = None,
        sizes: Any = None,
    ) -> Inputs:
        sizes = sizes or self.sizes
        texts = [
            "<image>" * number + "on the left " * row + QUESTIONS[row] for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index, *sizes[index % len(sizes)]) for index in range(sum(images_per_row))]
        if only is not None:
            before = sum(images_per_row[:only])
            texts, images = texts[only : only + 1], images[before : before + images_per_row[only]]
        with warnings.catch_warnings():  # it hands torch tensors to numpy in a way that numpy deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return dict(processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt"))

    def items(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """Images follow one another without text between them."""
        numbers = self.placeholder(model, inputs["input_ids"]).sum(1) // TOKENS
        return [[TOKENS] * number for number in numbers.tolist()]

    def allowed(self, model: Any, ids: Tensor, prompt: int) -> Tensor:
        """All of the prompt sees all of it."""
        allowed = super().allowed(model, ids, prompt)
        allowed[:prompt, :prompt] = True
        return allowed


FAMILIES = {"paligemma": PaliGemma()}
