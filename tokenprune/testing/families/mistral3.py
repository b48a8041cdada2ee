"""A tiny Mistral 3 of random weights and its processor: a visual token for each square of 16 pixels."""

from typing import Any, ClassVar

import torch

from tokenprune.testing.families.base import Inputs
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.families.tiles import Tiles

PIXELS, PATCH = 96, 8
MARKS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]{% endif %}{% endfor %}"
)


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": [*MARKS, "[INST]", "[/INST]"]})
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(size={"longest_edge": PIXELS}, patch_size=PATCH)
    how = {"patch_size": PATCH, "spatial_merge_size": 2, "chat_template": CHAT_TEMPLATE}
    return PixtralProcessor(images, tiny_tokenizer(), **how)


def tiny_mistral3(attention: str = "sdpa", decoder: str = "mistral", layer: int = -1, **text: Any) -> Any:
    """A new model of this family with random weights."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Mistral3Config(
        vision_config={"model_type": "pixtral", **sizes, "image_size": PIXELS, "patch_size": PATCH},
        text_config=text_config(decoder, len(tokenizer), head_dim=16, **{"sliding_window": None, **text}),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=layer,
        tie_word_embeddings=False,
    )
    marks = tokenizer.convert_tokens_to_ids(MARKS)
    return finish(Mistral3ForConditionalGeneration(config), attention, *marks)


class Mistral3(Tiles):
    """Mistral 3, whose images end with a mark."""

    scopes: tuple[str, ...] = ("image",)
    token = "[IMG]"
    nominal: ClassVar = {"sizes": [(PIXELS, PIXELS)]}

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_mistral3(attention), tiny_processor()

    def fixed(self, model: Any, inputs: Inputs) -> list[list[int]]:
        return [[] for _ in inputs["input_ids"]]

    def items(self, model: Any, inputs: Inputs) -> list[list[int]]:
        """An image ends with its mark."""
        end = tiny_tokenizer().convert_tokens_to_ids("[IMG_END]")
        counted = []
        for ids in inputs["input_ids"]:
            visual = self.placeholder(model, ids)
            image = (ids == end).long().cumsum(0)[visual]
            counted.append(torch.bincount(image).tolist() if len(image) else [])
        return counted


FAMILIES = {"mistral3": Mistral3()}
