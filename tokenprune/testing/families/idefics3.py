"""A tiny Idefics3 and a tiny SmolVLM of random weights, and their processors: 9 visual tokens a tile of 36 patches."""

from typing import Any

import torch

from tokenprune.testing.families.base import Inputs
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.families.tiles import Tiles

PIXELS, PATCH, FACTOR = 48, 8, 2
NAMES = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}  # prefixes of the classes' names
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tiny_tokenizer(kind: str) -> Any:
    """SmolVLM has a token for each marker; Idefics3 spells them."""
    from tokenizers import AddedToken

    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    special = ["<fake_token_around_image>", "<end_of_utterance>", "<|im_start|>"]
    if kind == "smolvlm":
        special += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    words = ["User:", "Assistant:", "\n", "<row_", "_col_", "<global", "-img>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def tiny_processor(kind: str = "smolvlm") -> Any:
    """SmolVLM's takes videos, too."""
    import transformers

    sizes = {"size": {"longest_edge": 4 * PIXELS}, "max_image_size": {"longest_edge": PIXELS}}
    parts = [getattr(transformers, f"{NAMES[kind]}ImageProcessor")(**sizes), tiny_tokenizer(kind)]
    if kind == "smolvlm":
        parts.append(transformers.SmolVLMVideoProcessor(**sizes))
    tokens = (PIXELS // PATCH // FACTOR) ** 2
    processor = getattr(transformers, f"{NAMES[kind]}Processor")
    return processor(*parts, image_seq_len=tokens, chat_template=CHAT_TEMPLATE)


def tiny_idefics3(kind: str = "smolvlm", attention: str = "sdpa", decoder: str = "llama") -> Any:
    """A new model of this family with random weights."""
    import transformers

    name = NAMES[kind]
    tokenizer = tiny_tokenizer(kind)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        vision_config={**sizes, "image_size": PIXELS, "patch_size": PATCH},
        text_config=text_config(decoder, len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=FACTOR,
        tie_word_embeddings=False,
    )
    return finish(getattr(transformers, f"{name}ForConditionalGeneration")(config), attention)


class Idefics3(Tiles):
    """Idefics3 or SmolVLM, each of whose images is a run of tiles.

    Args:
        kind: of ``NAMES``.
        marker: the last token before the whole image.
    """

    tower = "siglip"
    nominal = {"sizes": [(PIXELS, PIXELS)], "longest": 4 * PIXELS}  # noqa: RUF012 - as in Family

    def __init__(self, kind: str, marker: str) -> None:
        self.kind, self.marker = kind, marker  # the last token before the whole image

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_idefics3(self.kind, attention), tiny_processor(self.kind)

    def ask(
        self, processor: Any, *images_per_row: int, longest: int = 2 * PIXELS, only: int | None = None, **options: Any
    ) -> Inputs:
        """Images in 4 + 1, 2 + 1, 2 + 1 and 4 + 1 tiles; the processor wants to know whose they are."""

        def nested(images: Any, **how: Any) -> Any:
            rows, left = images_per_row if only is None else images_per_row[only : only + 1], iter(images)
            images = [[next(left) for _ in range(number)] for number in rows]
            return processor(images=images, size={"longest_edge": longest}, **how)

        return super().ask(nested, *images_per_row, only=only, **options)

    def fixed(self, model: Any, inputs: Inputs) -> list[list[int]]:
        return [[] for _ in inputs["input_ids"]]

    def items(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """An image ends with the run of placeholders that follows its marker."""
        marker, number, counted = tiny_tokenizer(self.kind).convert_tokens_to_ids(self.marker), 9, []
        for ids in inputs["input_ids"]:
            visual = self.placeholder(model, ids)
            before = torch.cat([ids[:1], ids[:-1]])[visual][::number]
            sizes, tiles = [], 0
            for token in before.tolist():
                tiles += 1
                if token == marker:
                    sizes.append(number * tiles)
                    tiles = 0
            assert not tiles
            counted.append(sizes)
        return counted


FAMILIES = {"idefics3": Idefics3("idefics3", "-img>"), "smolvlm": Idefics3("smolvlm", "<global-img>")}
