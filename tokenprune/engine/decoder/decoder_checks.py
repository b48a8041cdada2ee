"""What an LLM must be like so that its layers can be pruned inside, each refusal with its reason."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.inside_plan import InsidePlan
from tokenprune.engine.decoder.masks import mask_kind

PARTS = ("layers", "norm", "rotary_emb")
STORAGES = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)
LAYER_TYPES = {"full_attention", "sliding_attention"}
# Versions that checkpoint the forward of a layer; in earlier ones hooks would run again in the backward pass.
HOOKS_RUN_ONCE = "__init_subclass__" in vars(GradientCheckpointingLayer)


def check_decoder(decoder: Any) -> str:
    """The kind of mask that its layers take; ModelError if they cannot be pruned."""
    name, config = type(decoder).__name__, decoder.config
    missing = [part for part in PARTS if not hasattr(decoder, part)]
    if missing or not all(hasattr(layer, "self_attn") for layer in decoder.layers):
        raise ModelError(f"{name} has no {', '.join(missing or ['self_attn'])}, so it cannot be pruned inside")
    if odd := set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES:
        raise ModelError(f"{name} has layers of type {', '.join(sorted(odd))}, which cannot be pruned inside")
    if (getattr(config, "rope_parameters", None) or {}).get("llama_4_scaling_beta"):
        raise ModelError(
            f"{name} scales queries by their positions, which layers are not told once tokens have left, so it cannot "
            "be pruned inside; use a pruner before the LLM"
        )
    kind = mask_kind(config._attn_implementation)
    if kind is None:
        raise ModelError(
            f"attention {config._attn_implementation!r} cannot be pruned inside the LLM; load the model with sdpa, "
            "eager or flash_attention_2"
        )
    return kind


def before_mlp(layer: Any) -> Any:
    """The norm of a decoder layer that gets the hidden states between attention and MLP; None if there is none."""
    return getattr(layer, "pre_feedforward_layernorm", getattr(layer, "post_attention_layernorm", None))


def check_behind_attention(decoder: Any, plan: InsidePlan) -> None:
    """Refuse stages behind the attention of a layer, or in its cache, where they cannot be."""
    behind = [step.stage for step in plan.steps if step.stage.behind_attention]
    for stage in behind:
        layer = decoder.layers[stage.layer]
        if before_mlp(layer) is None or not hasattr(layer, "mlp"):
            raise ModelError(
                f"{type(layer).__name__} has no norm and mlp behind its attention, so nothing can leave there"
            )
    biased = plan.prompt.bias is not None
    if (behind or biased) and plan.active is not None and not bool(plan.active.all()):
        what = f"the stage {behind[0]}" if behind else "a bias on keys"
        raise ModelError(f"operation pruning cannot be combined with {what}; use a base that selects before the LLM")


def check_cache(cache: Any) -> None:
    """Refuse caches whose layers cannot have lengths of their own."""
    for storage in getattr(cache, "layers", ()):
        if type(storage) not in STORAGES:
            raise ModelError(
                f"a cache with {type(storage).__name__} cannot be pruned inside the LLM; use a dynamic cache, or a "
                "static one without sliding windows"
            )


def check_uncompiled(model: Any, decoder: Any) -> None:
    """Refuse compiled code that begins above the layers: made without hooks, it would run without them, unnoticed."""
    for module in (model, model.base_model, decoder):
        own = vars(vars(module).get("forward", object)) if callable(vars(module).get("forward")) else {}
        compiled = "_torchdynamo_orig_callable" in own and not own.get("_torchdynamo_disable")
        if compiled or module._compiled_call_impl is not None:
            raise ModelError(
                f"{type(module).__name__} is compiled as a whole, which leaves out what prunes inside the LLM; compile "
                "its layers (for layer in model.get_decoder().layers: layer.compile()), or prune before the LLM"
            )


def check_checkpointing(decoder: Any, first: int, *, inner: bool) -> None:
    """Refuse gradient checkpointing where a layer's second run would not do what the first did."""
    layer = decoder.layers[first]
    on = getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled()
    if on and (inner or not HOOKS_RUN_ONCE):
        raise ModelError(
            "gradient checkpointing runs layers again in the backward pass, where nothing prunes inside them; call "
            "model.gradient_checkpointing_disable(), or prune before the LLM"
            + ("" if HOOKS_RUN_ONCE else " or take transformers >= 5.23")
        )
