"""LLaVA-1.5 and its kin: a CLIP or SigLIP vision tower, an MLP projector, and as many visual tokens for each image.

Paper: Improved Baselines with Visual Instruction Tuning (Liu et al., 2024), https://arxiv.org/abs/2310.03744
Code: ``LlavaForConditionalGeneration`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.known import register_adapter
from tokenprune.adapters.spec import decoder_spec, vision_spec
from tokenprune.errors import ModelError
from tokenprune.types import ModelSpec, Signal

CLS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # of the vision towers that are known


@register_adapter("llava", paper="https://arxiv.org/abs/2310.03744")
class LlavaAdapter(ModelAdapter):
    """LLaVA-1.5: one row of visual tokens an image, 576 for a CLIP tower of 336 pixels."""

    model_types = ("llava",)
    example = "llava-hf/llava-1.5-7b-hf"
    offers = frozenset(
        {
            Signal.CLIP_IMAGE_EMBEDS,
            Signal.CLIP_TEXT_EMBEDS,
            Signal.PROMPT_EMBEDS,
            Signal.PROMPT_MASK,
            Signal.CLS_ATTENTION,
            Signal.KEYS,
            Signal.VISION_HIDDEN,
        }
    )

    @classmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """See ``ModelAdapter``. Of the tower's tokens, the projector skips the first with the strategy ``default``."""
        vision, layers = config.vision_config, config.vision_feature_layer
        if vision.model_type not in CLS_TOKENS:
            raise ModelError(f"vision tower {vision.model_type!r} is not known; known: {', '.join(CLS_TOKENS)}")
        tokens = (vision.image_size // vision.patch_size) ** 2 + CLS_TOKENS[vision.model_type]
        read = vision.hidden_size * (1 if isinstance(layers, int) else len(layers))
        width = config.text_config.hidden_size
        return ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=tokens - (config.vision_feature_select_strategy == "default"),
            vision=vision_spec(vision),
            vision_tokens=tokens,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(read, width, width),
        )

    def grid(self) -> tuple[int, int] | None:
        """Patches in raster order, unless the projector also reads the CLS token or skips a patch."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return (side, side) if side**2 == self.spec.visual_tokens else None

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """See ``ModelAdapter``; images must have the size that the tower was made for."""
        super().check_inputs(inputs)
        size, shape = self.model.config.vision_config.image_size, tuple(inputs["pixel_values"].shape)
        if len(shape) != 4 or shape[2:] != (size, size):
            raise ModelError(
                f"pixel_values must be (images, 3, {size}, {size}), got {shape}; use the model's own processor"
            )

    def vision_signals(self, output: Any, requires: frozenset[Signal]) -> dict[Signal, Tensor]:
        """See ``ModelAdapter``; all are of the encoder layer whose output the projector reads."""
        config = self.model.config
        layer, first = config.vision_feature_layer, int(config.vision_feature_select_strategy == "default")
        wanted = requires & {Signal.VISION_HIDDEN, Signal.CLS_ATTENTION, Signal.KEYS}
        if wanted and not isinstance(layer, int):
            names = ", ".join(sorted(wanted))
            raise ModelError(f"the projector reads several layers, {list(layer)}, so {names} could be any of theirs")
        signals = {}
        if Signal.VISION_HIDDEN in wanted:
            signals[Signal.VISION_HIDDEN] = output.hidden_states[layer][:, first:].flatten(0, 1)
        if wanted & {Signal.CLS_ATTENTION, Signal.KEYS}:
            x, attention = self._attention_input(output.hidden_states, layer)
            keys = attention.k_proj(x)
            signals[Signal.KEYS] = keys[:, first:].flatten(0, 1)
            if Signal.CLS_ATTENTION in wanted:
                signals[Signal.CLS_ATTENTION] = self._cls_attention(x, keys, attention)[..., first:].mT.flatten(0, 1)
        return signals

    def _attention_input(self, hidden_states: tuple[Tensor, ...], layer: int) -> tuple[Tensor, Any]:
        """What the attention of the layer that gives ``hidden_states[layer]`` reads, (I, tokens, V), and its module."""
        index = layer % len(hidden_states) - 1
        if index < 0:
            raise ModelError("the projector reads the patch embeddings, so there is no attention layer before it")
        block = self.model.base_model.vision_tower.encoder.layers[index]
        return block.layer_norm1(hidden_states[index]), block.self_attn

    def _cls_attention(self, x: Tensor, keys: Tensor, attention: Any) -> Tensor:
        """(I, H, tokens): the one row that is needed, recomputed, since fast attention kernels give no weights."""
        kind = self.model.config.vision_config.model_type
        if not CLS_TOKENS[kind]:
            raise ModelError(f"the vision tower {kind!r} has no CLS token whose attention could be read")
        shape = (len(x), -1, attention.num_heads, attention.head_dim)
        query = attention.q_proj(x[:, :1]).view(shape).float()
        scores = torch.einsum("iqhd,ikhd->ihk", query, keys.view(shape).float()) * attention.scale
        weights: Tensor = scores.softmax(dim=-1)
        return weights
