"""A tiny LLaVA-OneVision of random weights and its processor: 25 visual tokens a tile, 9 a frame of a video.

Of more than two tiles' tokens it makes fewer, so that the largest pictures are resized, and others are not.
"""

from typing import Any, ClassVar

from tokenprune.testing.families.llava import PATCH_SIZE
from tokenprune.testing.families.parts import finish, text_config, with_videos
from tokenprune.testing.families.tiles import CANVASES, Mixed, Tiles
from tokenprune.testing.pictures import IMAGE_SIZE

MOST = "anyres_max_2"


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<video>"]})
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    from tokenprune.embedded.tokenizer import CHAT_TEMPLATE

    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=CANVASES),
        tiny_tokenizer(),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=MOST,
        chat_template=with_videos(CHAT_TEMPLATE),
    )


def tiny_llava_onevision(attention: str = "sdpa", decoder: str = "qwen2", **changes: Any) -> Any:
    """A new model of this family with random weights."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    tokenizer = tiny_tokenizer()
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text_config(decoder, len(tokenizer), tie_word_embeddings=False),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=CANVASES,
        vision_aspect_ratio=MOST,
        **changes,
    )
    return finish(LlavaOnevisionForConditionalGeneration(config), attention, video)


class Images(Tiles):
    """Prompts with images alone."""

    tower = "siglip"
    nominal: ClassVar = {"sizes": [(40, 80)]}

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_llava_onevision(attention), tiny_processor()


class Videos(Mixed, Images):
    """Each second picture is a video."""


FAMILIES = {"llava_onevision": Images(), "llava_onevision_video": Videos()}
