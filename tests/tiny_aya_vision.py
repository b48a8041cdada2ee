"""A tiny Aya Vision of random weights: tiles with text between them, and no adapter that serves it."""

from tokenprune.testing.families.gemma3 import siglip_config
from tokenprune.testing.families.parts import finish, text_config
from tokenprune.testing.families.tiles import Tiles

PIXELS = 48
MARKS = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class AyaVision(Tiles):
    tower = "siglip"
    sizes = ((96, 48), (48, 48), (96, 96))  # 2 + 1 tiles, 1, and 4 + 1

    def make(self, attention):
        from transformers import (
            AyaVisionConfig,
            AyaVisionForConditionalGeneration,
            AyaVisionProcessor,
            GotOcr2ImageProcessor,
        )

        from tokenprune.embedded.tokenizer import build_tokenizer

        tokenizer = build_tokenizer(max_length=4096)
        tokenizer.add_special_tokens({"extra_special_tokens": [*MARKS, *(f"TILE_{tile}" for tile in range(1, 5))]})
        images = GotOcr2ImageProcessor(
            size={"height": PIXELS, "width": PIXELS}, crop_to_patches=True, min_patches=1, max_patches=4
        )
        sizes = {"patch_size": 8, "img_size": PIXELS, "downsample_factor": 2}
        config = AyaVisionConfig(
            vision_config=siglip_config(),
            text_config=text_config("llama", len(tokenizer)),
            image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
            downsample_factor=2,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
        model = finish(AyaVisionForConditionalGeneration(config), attention)
        return model, AyaVisionProcessor(images, tokenizer, **sizes, chat_template=CHAT_TEMPLATE)
