"""A tiny LLaVA-NeXT-Video of random weights and its processor: 16 visual tokens a tile, 4 a frame of a video."""

from typing import Any, ClassVar

from tokenprune.testing.families.llava import tiny_vision_config
from tokenprune.testing.families.parts import finish, text_config, with_videos
from tokenprune.testing.families.tiles import CANVASES, Mixed, Tiles
from tokenprune.testing.pictures import IMAGE_SIZE

PATCH = 10  # pixels; squares of two by two are a visual token of a video


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<video>"]})
    return tokenizer


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    from tokenprune.embedded.tokenizer import CHAT_TEMPLATE

    sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**sizes),
        LlavaNextImageProcessor(**sizes, image_grid_pinpoints=CANVASES),
        tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=with_videos(CHAT_TEMPLATE),
    )


def tiny_llava_next_video(attention: str = "sdpa", **changes: Any) -> Any:
    """A new model of this family with random weights."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    tokenizer = tiny_tokenizer()
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaNextVideoConfig(
        vision_config=tiny_vision_config(patch_size=PATCH),
        text_config=text_config("llama", len(tokenizer)),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=CANVASES,
        **changes,
    )
    return finish(LlavaNextVideoForConditionalGeneration(config), attention, video)


class Images(Tiles):
    """Prompts with images alone."""

    nominal: ClassVar = {"sizes": [(80, 80)]}

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_llava_next_video(attention), tiny_processor()


class Videos(Mixed, Images):
    """Each second picture is a video."""


FAMILIES = {"llava_next_video_images": Images(), "llava_next_video": Videos()}
