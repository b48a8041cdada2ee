"""A tiny LLaVA-NeXT of random weights and its processor: 25 visual tokens a tile."""

from typing import ClassVar

from checks import CANVASES, Tiles, finish, text_config
from tiny import IMAGE_SIZE, PATCH_SIZE, tiny_vision_config


def tiny_processor():
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    from tokenprune.embedded.tokenizer import CHAT_TEMPLATE, build_tokenizer

    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    size = {"shortest_edge": IMAGE_SIZE}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=CANVASES),
        tokenizer=build_tokenizer(max_length=4096),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava_next(attention="sdpa", decoder="llama", **changes):
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    from tokenprune.embedded.tokenizer import VOCABULARY

    config = LlavaNextConfig(
        vision_config=tiny_vision_config(),
        text_config=text_config(decoder),
        image_token_index=VOCABULARY["<image>"],
        image_grid_pinpoints=CANVASES,
        **changes,
    )
    return finish(LlavaNextForConditionalGeneration(config), attention)


class LlavaNext(Tiles):
    nominal: ClassVar = {"sizes": [(80, 80)]}

    def make(self, attention):
        return tiny_llava_next(attention), tiny_processor()


FAMILIES = {"llava_next": LlavaNext()}
