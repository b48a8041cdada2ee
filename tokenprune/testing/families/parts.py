"""Configs and random weights, of which the tiny models are made."""

from typing import Any

import torch


def randomise(model: Any, seed: int = 0) -> Any:
    """Random weights large enough that attention is not flat and argmax is not the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                scale = 0.5 if "embed" in name else 1.6 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def text_config(kind: str = "llama", vocabulary: int | None = None, **changes: Any) -> Any:
    """Config of a tiny decoder of four layers that knows the embedded model's words."""
    from transformers import AutoConfig

    from tokenprune.embedded.tokenizer import VOCABULARY

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokens = {"pad_token_id": VOCABULARY["<pad>"], "bos_token_id": VOCABULARY["<s>"], "eos_token_id": None}
    size = vocabulary or len(VOCABULARY)
    return AutoConfig.for_model(kind, vocab_size=size, num_key_value_heads=2, **{**sizes, **tokens, **changes})


def finish(model: Any, attention: str, *silent: int) -> Any:
    """Random weights; it never says the tokens in ``silent``."""
    torch.manual_seed(0)
    randomise(model)
    with torch.no_grad():
        model.lm_head.weight[[model.config.image_token_id, *silent]] = 0
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    return model


def with_videos(template: str) -> str:
    """A chat template that writes images and text, and videos, too."""
    return template.replace("{% else %}", "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}{% else %}")
