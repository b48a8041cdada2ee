"""The embedded MLLM: a small LLaVA of real Hugging Face parts, with its paired CLIP, tokenizer and processor."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tokenprune.embedded.scenes import IMAGE_SIZE, PATCH_SIZE
from tokenprune.embedded.tokenizer import CHAT_TEMPLATE, VOCABULARY, build_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
TEXT_POSITIONS = 77  # context of the CLIP text tower, tokens; as in OpenAI's CLIP


def load_embedded() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the embedded MLLM: 144 visual tokens, six Llama layers, trained on the ``scenes`` task.

    Returns:
        The model in float32 and evaluation mode, and its processor; what ``from_pretrained`` gives for any checkpoint.
    """
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype="float32", local_files_only=True)
    return model.eval(), LlavaProcessor.from_pretrained(WEIGHTS, local_files_only=True)


def vision_config() -> CLIPVisionConfig:
    """CLIP vision tower: 96 x 96 pixels in patches of 8, so 144 visual tokens and a CLS token."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )


def clip_config() -> CLIPConfig:
    """The CLIP pair: the vision tower of ``vision_config`` and a two-layer text tower."""
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_POSITIONS,
        projection_dim=128,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision_config().to_dict(), projection_dim=128)


def llava_config() -> LlavaConfig:
    """LLaVA-1.5's shape in small: CLIP tower, two-layer GELU projector, six Llama layers."""
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
    )
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=vision_config().image_size ** 2 // vision_config().patch_size ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_processor() -> LlavaProcessor:
    """The processor: images to 96 x 96 pixels, ``<image>`` to 144 placeholders, LLaVA-1.5's chat format."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size=size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def see(clip: CLIPModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch features (B, N, V) of the layer that LLaVA reads, and the pooled output (B, V)."""
    out = clip.vision_model(pixel_values=images, output_hidden_states=True)
    return out.hidden_states[-2][:, 1:], out.pooler_output
