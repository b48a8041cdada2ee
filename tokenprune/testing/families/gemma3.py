"""A tiny Gemma 3 of random weights and its processor: 9 visual tokens an image, each of four patches."""

from typing import Any

import torch
from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.pictures import QUESTIONS, picture

PIXELS, PATCH, TOKENS = 48, 8, 9
MARKS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenizers import AddedToken

    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": [*MARKS.values()]})
    words = ["<start_of_turn>user", "<start_of_turn>model", "<end_of_turn>", "\n", "\n\n"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    for name, token in MARKS.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    images = Gemma3ImageProcessor(size={"height": PIXELS, "width": PIXELS})
    return Gemma3Processor(images, tiny_tokenizer(), image_seq_length=TOKENS, chat_template=CHAT_TEMPLATE)


def siglip_config(**changes: Any) -> Any:
    """Config of a tiny SigLIP tower without a head."""
    from transformers import SiglipVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return SiglipVisionConfig(**sizes, image_size=PIXELS, vision_use_head=False, **{"patch_size": PATCH, **changes})


def tiny_gemma3(attention: str = "sdpa", window: int = 512) -> Any:
    """A new model of this family with random weights."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    kinds = ["sliding_attention", "full_attention"] * 2
    own = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": window, "layer_types": kinds}
    config = Gemma3Config(
        vision_config=siglip_config(),
        text_config=text_config("gemma3_text", len(tokenizer), **own),
        mm_tokens_per_image=TOKENS,
        image_token_id=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )
    return scaled(finish(Gemma3ForConditionalGeneration(config), attention, tokenizer.boi_token_id))


def scaled(model: Any) -> Any:
    """Gemma multiplies its embeddings by the root of their width; so that the layers still have a say."""
    with torch.no_grad():
        model.get_input_embeddings().weight /= model.config.text_config.hidden_size**0.5
    return model


class Gemma3(Family):
    """Gemma 3, whose image tokens see all of their image."""

    tower = "siglip"
    sizes = tuple((30 + index, 50) for index in range(8))

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_gemma3(attention), tiny_processor()

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
            "USER: " + "on the left " * row + "where <start_of_image>\n" * number + QUESTIONS[row] + " ASSISTANT:"
            for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index, *sizes[index % len(sizes)]) for index in range(sum(images_per_row))]
        nested = [[images.pop(0) for _ in range(number)] for number in images_per_row]
        rows = slice(None) if only is None else slice(only, only + 1)
        inputs = processor(images=nested[rows], text=texts[rows], padding=True, padding_side=side, return_tensors="pt")
        return dict(inputs)

    def allowed(self, model: Any, ids: Tensor, prompt: int) -> Tensor:
        """What is of one image sees all of it."""
        visual = self.placeholder(model, ids)
        visual[prompt:] = False
        image = (visual & ~torch.cat([visual[:1] & False, visual[:-1]])).cumsum(0) * visual
        return super().allowed(model, ids, prompt) | ((image[:, None] == image) & visual)


FAMILIES = {"gemma3": Gemma3()}
