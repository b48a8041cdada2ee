"""Sizes of a model's transformers, read from Hugging Face configs."""

from __future__ import annotations

from typing import Any

from tokenprune.core.sizes import TransformerSpec

UNGATED = {"bloom", "falcon", "gpt2", "gpt_neox", "opt", "phi"}  # decoders whose MLP has two matrices instead of three


def decoder_spec(config: Any) -> TransformerSpec:
    """The language model, from its ``text_config``."""
    heads, windowed = config.num_attention_heads, windowed_layers(config)
    return TransformerSpec(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp_matrices=2 if config.model_type in UNGATED else 3,
        window=config.sliding_window if windowed else 0,
        windowed=windowed,
    )


def windowed_layers(config: Any) -> tuple[int, ...]:
    """The layers (0-based) of a decoder whose queries see a sliding window alone."""
    layers, kinds = range(config.num_hidden_layers), getattr(config, "layer_types", None)
    if getattr(config, "sliding_window", None) is None:
        return ()
    return tuple(layer for layer in layers if kinds is None or kinds[layer] == "sliding_attention")


def vision_spec(config: Any) -> TransformerSpec:
    """A CLIP or SigLIP vision tower, all of its layers: the tower runs to its end, whichever layer is read."""
    heads = config.num_attention_heads
    return TransformerSpec(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        heads=heads,
        kv_heads=heads,
        head_dim=config.hidden_size // heads,
        mlp_matrices=2,
    )


def has_head(config: Any) -> bool:
    """Whether a vision tower pools its tokens at the end by one more query, as SigLIP's does unless told otherwise."""
    return config.model_type == "siglip_vision_model" and bool(getattr(config, "vision_use_head", True))
