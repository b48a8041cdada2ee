"""A tiny LLaVA-NeXT-Video of random weights and its processor: 16 visual tokens a tile, 4 a frame of a video."""

from typing import ClassVar

from checks import CANVASES, Mixed, Tiles, finish, text_config
from tiny import IMAGE_SIZE, tiny_vision_config

PATCH = 10  # pixels; squares of two by two are a visual token of a video


def tiny_tokenizer():
    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<video>"]})
    return tokenizer


def tiny_processor():
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
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava_next_video(attention="sdpa", **changes):
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
    nominal: ClassVar = {"sizes": [(80, 80)]}

    def make(self, attention):
        return tiny_llava_next_video(attention), tiny_processor()


class Videos(Mixed, Images):
    """Each second picture is a video."""


FAMILIES = {"llava_next_video_images": Images(), "llava_next_video": Videos()}
