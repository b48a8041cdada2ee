"""Sizes and signals of a CLIP or SigLIP vision tower as LLaVA and its successors have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Layer, Signal, TowerAttention, TowerStates, plain_names
from tokenprune.core.sizes import ModelSpec
from tokenprune.towers.attention import attention_to, layer_index
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
    """Signals of the patches that the projector reads, of the encoder layer whose output it reads or one that is named.

    Args:
        model: with ``vision_tower``.
        output: of the tower, with the hidden states that are needed.
        requires: ``TowerStates`` and ``TowerKeys`` (I, N, C), ``TowerAttention`` (I, N, H) are given as far as
            required; I are the pictures that the tower saw. What patches receive is from patches alone, not from CLS.

    Raises:
        ModelError: if the model does not have them.
    """
    config, layers = model.config, model.base_model.vision_tower.encoder.layers
    read, first, states = config.vision_feature_layer, first_token(config), output.hidden_states
    if any(layer_of(signal) is None for signal in requires) and not isinstance(read, int):
        names = plain_names(requires)
        raise ModelError(f"the projector reads several layers, {list(read)}, so {names} could be any of theirs")
    signals: dict[Signal, Tensor] = {}
    for signal in requires:
        given = layer_of(signal)
        if isinstance(signal, TowerStates):
            signals[signal] = states[read if given is None else layer_index(given, len(layers)) + 1][:, first:]
            continue
        index = attention_layer(read, states) if given is None else layer_index(given, len(layers))
        x, attention = layers[index].layer_norm1(states[index]), layers[index].self_attn
        keys = attention.k_proj(x)
        if isinstance(signal, TowerAttention):
            asking = _asking(signal, x, config.vision_config.model_type)
            keys = attention_to(keys, attention.q_proj(asking), attention)
        signals[signal] = keys[:, first:]
    return signals


def _asking(signal: TowerAttention, x: Tensor, tower: str) -> Tensor:
    """(I, Q, C) inputs of the queries of an attention: of CLS, or of all patches."""
    number = CLS_TOKENS[tower]
    if signal.query == "cls" and not number:
        raise ModelError(
            f"the vision tower {tower!r} has no CLS token whose attention could be read; received_attention stands in "
            "for cls_attention there"
        )
    return x[:, :1] if signal.query == "cls" else x[:, number:]


def layer_of(signal: Signal) -> Layer | None:
    """The layer of a vision tower that a signal names; None for the one whose output the projector reads."""
    layer: Layer | None = getattr(signal, "layer", None)
    return layer


def attention_layer(layer: int, hidden_states: Sequence[Tensor]) -> int:
    """The index of the encoder layer that gives ``hidden_states[layer]``; ModelError if they are embeddings."""
    index = layer % len(hidden_states) - 1
    if index < 0:
        raise ModelError("the projector reads the patch embeddings, so there is no attention layer before it")
    return index
