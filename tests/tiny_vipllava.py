"""A tiny ViP-LLaVA, whose projector reads several layers of the tower, for models that no adapter serves."""

import torch

from tokenprune.testing.families.llava import tiny_llava, tiny_processor
from tokenprune.testing.families.parts import randomise


def vipllava():
    """A new (model, processor)."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    config = tiny_llava().config
    config = VipLlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=config.image_seq_length,
        vision_feature_layers=[-2, -3],
    )
    torch.manual_seed(0)
    model = randomise(VipLlavaForConditionalGeneration(config))
    model.lm_head.weight.data[config.image_token_id] = 0
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model, tiny_processor()
