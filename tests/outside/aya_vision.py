"""Aya Vision: each tile of an image is a row of visual tokens, four patches a token."""

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tokenprune as tp
from tokenprune.towers.patches import pool
from tokenprune.towers.siglip import SIGLIP
from tokenprune.towers.sizes import decoder_spec, vision_spec


@tp.register_adapter("aya_vision", paper="https://arxiv.org/abs/2505.08751")
class AyaVisionAdapter(tp.ModelAdapter):
    """Aya Vision: 169 visual tokens for a tile of 364 pixels."""

    model_types = ("aya_vision",)
    example = "CohereLabs/aya-vision-8b"
    tower = SIGLIP

    @classmethod
    def spec_from_config(cls, config):
        vision, width = config.vision_config, config.text_config.hidden_size
        patches = (vision.image_size // vision.patch_size) ** 2
        return tp.ModelSpec(
            llm=decoder_spec(config.text_config),
            vocabulary=config.text_config.vocab_size,
            visual_tokens=patches // config.downsample_factor**2,
            vision=vision_spec(vision),
            vision_tokens=patches,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            projector=(config.downsample_factor**2 * vision.hidden_size, width, width),
        )

    def grid(self):
        side = round(self.spec.visual_tokens**0.5)
        return side, side

    def shortened(self, output, parts, kept):
        return BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[:, None])

    def per_token(self, modality, x, inputs):
        side, factor = self.grid()[0], self.model.config.downsample_factor
        return pool(x, (side * factor, side * factor), factor).flatten(0, 1)
