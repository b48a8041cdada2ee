"""A tiny InternVL3 of random weights and its processor: 25 visual tokens a tile, each of four patches."""

from typing import Any, ClassVar

from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.families.tiles import Tiles

PIXELS, PATCH = 40, 4
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": [*MARKS.values(), "<video>"]})
    for name, token in {**MARKS, "video_token": "<video>"}.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": PIXELS, "width": PIXELS}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=12),
        tiny_tokenizer(),
        InternVLVideoProcessor(size=size),
        image_seq_length=25,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_internvl(attention: str = "sdpa", decoder: str = "qwen2", vision: Any = None, **changes: Any) -> Any:
    """A new model of this family with random weights."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

    tokenizer = tiny_tokenizer()
    tower = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=[PIXELS, PIXELS],
        patch_size=[PATCH, PATCH],
        **(vision or {}),
    )
    config = InternVLConfig(
        vision_config=tower,
        text_config=text_config(decoder, len(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=25,
        tie_word_embeddings=False,
        **changes,
    )
    model = InternVLForConditionalGeneration(config)
    return finish(model, attention, *(getattr(tokenizer, f"{name}_id") for name in MARKS))


class InternVL(Tiles):
    """InternVL3."""

    token = "<IMG_CONTEXT>"
    sizes = ((70, 70), (40, 80), (80, 24), (40, 40))  # 4 + 1, 2 + 1, 3 + 1 tiles and 1
    nominal: ClassVar = {"sizes": [(120, 160)]}

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_internvl(attention), tiny_processor()


FAMILIES = {"internvl": InternVL()}
