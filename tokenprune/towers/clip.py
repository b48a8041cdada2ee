"""Sizes and signals of a CLIP or SigLIP vision tower as LLaVA and its successors have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerAttention, TowerKeys, TowerStates, plain_names
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.attention import attention_to
from tokenprune.towers.sizes import decoder_spec, has_head, vision_spec

CLS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # of the vision towers that are known


def llava_spec(config: Any, tiles: int = 1) -> ModelSpec:
    """Sizes of a model of a vision tower, an MLP projector of two layers and an LLM.

    Args:
        config: of the model. Of the tower's tokens, its projector skips the first with the strategy ``default``.
        tiles: that the tower sees of an image.

    Raises:
        ModelError: if the vision tower is not known.
    """
    vision, layers = config.vision_config, config.vision_feature_layer
    if vision.model_type not in CLS_TOKENS:
        raise ModelError(f"vision tower {vision.model_type!r} is not known; known: {', '.join(sorted(CLS_TOKENS))}")
    tokens = (vision.image_size // vision.patch_size) ** 2 + CLS_TOKENS[vision.model_type]
    read = vision.hidden_size * (1 if isinstance(layers, int) else len(layers))
    width = config.text_config.hidden_size
    return ModelSpec(
        llm=decoder_spec(config.text_config),
        vocabulary=config.text_config.vocab_size,
        visual_tokens=tiles * (tokens - first_token(config)),
        vision=vision_spec(vision),
        vision_tokens=tiles * tokens,
        vision_tiles=tiles,
        vision_prefix=CLS_TOKENS[vision.model_type],
        vision_head=has_head(vision),
        patch_inputs=vision.num_channels * vision.patch_size**2,
        projector=(read, width, width),
    )


def first_token(config: Any) -> int:
    """Which of the tower's tokens is the first that the projector reads."""
    return int(config.vision_feature_select_strategy == "default")


def tower_signals(model: Any, output: Any, requires: frozenset[Signal]) -> dict[Signal, Tensor]:
    """Signals of the patches that the projector reads; all are of the encoder layer whose output it reads.

    Args:
        model: with ``vision_tower``.
        output: of the tower, with the hidden states that are needed.
        requires: VISION_HIDDEN and KEYS (I, N, C), CLS_ATTENTION and RECEIVED_ATTENTION (I, N, H) are given as far as
            required; I are the pictures that the tower saw. What patches receive is from patches alone, not from CLS.

    Raises:
        ModelError: if the model does not have them.
    """
    config = model.config
    layer, first = config.vision_feature_layer, first_token(config)
    if requires and not isinstance(layer, int):
        names = plain_names(requires)
        raise ModelError(f"the projector reads several layers, {list(layer)}, so {names} could be any of theirs")
    signals: dict[Signal, Tensor] = {}
    if TowerStates() in requires:
        signals[TowerStates()] = output.hidden_states[layer][:, first:]
    if any(signal.reads_layers for signal in requires):
        index = attention_layer(layer, output.hidden_states)
        block = model.base_model.vision_tower.encoder.layers[index]
        x, attention = block.layer_norm1(output.hidden_states[index]), block.self_attn
        keys, patches = attention.k_proj(x), CLS_TOKENS[config.vision_config.model_type]
        signals[TowerKeys()] = keys[:, first:]
        if TowerAttention("cls") in requires:
            if not patches:
                raise ModelError(
                    f"the vision tower {config.vision_config.model_type!r} has no CLS token whose attention could be "
                    "read; received_attention stands in for cls_attention there"
                )
            signals[TowerAttention("cls")] = attention_to(keys, attention.q_proj(x[:, :1]), attention)[:, first:]
        if TowerAttention("patches") in requires:
            asking = attention.q_proj(x[:, patches:])
            signals[TowerAttention("patches")] = attention_to(keys, asking, attention)[:, first:]
    return signals


def attention_layer(layer: int, hidden_states: Sequence[Tensor]) -> int:
    """The index of the encoder layer that gives ``hidden_states[layer]``; ModelError if they are embeddings."""
    index = layer % len(hidden_states) - 1
    if index < 0:
        raise ModelError("the projector reads the patch embeddings, so there is no attention layer before it")
    return index
