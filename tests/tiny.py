"""A tiny LLaVA of random weights with its processor, and prompts with images for it."""

import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tokenprune.core.signals import Signal
from tokenprune.pruners.base import ScorePruner

IMAGE_SIZE, PATCH_SIZE = 40, 8  # pixels: 25 visual tokens


def randomise(model, seed=0):
    """Random weights large enough that attention is not flat and argmax is not the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                scale = 0.5 if "embed" in name else 1.6 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def tiny_vision_config(**changes):
    from transformers import CLIPVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    pixels = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "projection_dim": 24}
    return CLIPVisionConfig(**{**sizes, **pixels, **changes})


def tiny_processor():
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


def tiny_llava(attention="sdpa", vision=None, decoder="llama", text=None, **changes):
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


@functools.cache
def shared_llava(attention):
    return tiny_llava(attention), tiny_processor()


def picture(seed):
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


QUESTIONS = ("what color is the circle ?", "how many red things are there ?", "is there a star ?")


def ask(processor, *images_per_row, seed=0, side="left", only=None):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project(ScorePruner):
    """Scores by a fixed random direction, so that what stays depends on the features alone, not on their place."""

    def score(self, tokens):
        direction = torch.randn(tokens.features.shape[-1], generator=torch.Generator().manual_seed(3))
        return tokens.features.float() @ direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relevance(ScorePruner):
    """Scores by the cosine of patch and question in CLIP's space."""

    text_tower: str | None = None

    @property
    def requires(self):
        return frozenset({Signal.CLIP_IMAGE_EMBEDS, Signal.CLIP_TEXT_EMBEDS})

    def score(self, tokens):
        image, text = (F.normalize(tokens.signals[name], dim=-1) for name in sorted(self.requires))
        return (image @ text.mT).mean(-1)


def tiny_clip(eos_token_id=None):
    """The CLIPModel whose vision tower the tiny LLaVA has, and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    from tokenprune.embedded.tokenizer import VOCABULARY, build_tokenizer

    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        projection_dim=24,
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=eos_token_id or VOCABULARY["</s>"],
        pad_token_id=VOCABULARY["<pad>"],
    )
    vision = tiny_vision_config()
    torch.manual_seed(1)
    clip = randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), seed=1)
    clip.vision_model.load_state_dict(shared_llava("sdpa")[0].base_model.vision_tower.state_dict())
    return clip, build_tokenizer(append_eos=True)


def save_llava(folder, clip=True):
    """A checkpoint as one gets it from the hub, with the paired CLIP in a sub-folder."""
    for part in shared_llava("sdpa"):
        part.save_pretrained(folder)
    if clip:
        for part in tiny_clip():
            part.save_pretrained(folder / "clip")
    return folder
