"""A tiny LLaVA of random weights and its processor: 25 visual tokens an image."""

from typing import Any

import torch

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.families.parts import randomise
from tokenprune.testing.pictures import IMAGE_SIZE, QUESTIONS, picture

PATCH_SIZE = 8  # pixels
TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2  # of an image


def tiny_vision_config(**changes: Any) -> Any:
    """Config of a tiny CLIP tower."""
    from transformers import CLIPVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    pixels = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 24}
    return CLIPVisionConfig(**{**sizes, **pixels, **changes})


def tiny_processor() -> Any:
    """A new processor of this family for tiny pictures."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    from tokenprune.embedded.tokenizer import CHAT_TEMPLATE, build_tokenizer

    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava(
    attention: str = "sdpa", vision: Any = None, decoder: str = "llama", text: Any = None, **changes: Any
) -> Any:
    """A new model of this family with random weights."""
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

    from tokenprune.embedded.tokenizer import VOCABULARY

    text = AutoConfig.for_model(
        decoder,
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=None,
        **(text or {}),
    )
    config = LlavaConfig(
        vision_config=vision or tiny_vision_config(),
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        **changes,
    )
    torch.manual_seed(0)
    model = randomise(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        model.lm_head.weight[config.image_token_id] = 0  # so that it does not say "<image>"
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = VOCABULARY["<pad>"]
    return model


class Llava(Family):
    """LLaVA."""

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_llava(attention), tiny_processor()

    def ask(self, processor: Any, *images_per_row: int, **options: Any) -> Inputs:
        return ask(processor, *images_per_row, **options)

    def items(self, model: Any, inputs: Inputs) -> list[list[int]]:
        return [[TOKENS] * (int(number) // TOKENS) for number in self.placeholder(model, inputs["input_ids"]).sum(1)]


FAMILIES = {"llava": Llava()}


def shared_llava(attention: str) -> tuple[Any, Any]:
    """The (model, processor) that all tests share: leave them as they are."""
    return FAMILIES["llava"].build(attention)


def ask(processor: Any, *images_per_row: int, seed: int = 0, side: str = "left", only: int | None = None) -> Inputs:
    """Inputs of a batch, padded; rows differ in their numbers of images and in their lengths. ``only``: one of them."""
    texts = [
        "USER: " + "on the left " * row + "<image>\n" * number + QUESTIONS[row] + " ASSISTANT:"
        for row, number in enumerate(images_per_row)
    ]
    pictures = [picture(seed + index) for index in range(sum(images_per_row))]
    if only is not None:
        before = sum(images_per_row[:only])
        texts, pictures = texts[only : only + 1], pictures[before : before + images_per_row[only]]
    return dict(processor(images=pictures, text=texts, padding=True, padding_side=side, return_tensors="pt"))
