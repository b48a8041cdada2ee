"""A tiny LLaVA-NeXT of random weights and its processor: 25 visual tokens a tile."""

from typing import Any, ClassVar

from tokenprune.testing.families.llava import PATCH_SIZE, tiny_vision_config
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.families.tiles import CANVASES, Tiles
from tokenprune.testing.pictures import IMAGE_SIZE


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
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


def tiny_llava_next(attention: str = "sdpa", decoder: str = "llama", **changes: Any) -> Any:
    """A new model of this family with random weights."""
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
    """LLaVA-NeXT."""

    nominal: ClassVar = {"sizes": [(80, 80)]}

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_llava_next(attention), tiny_processor()


FAMILIES = {"llava_next": LlavaNext()}
