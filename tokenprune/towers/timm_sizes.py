"""Which of timm's ViTs can be pruned between their blocks, and what one is made of."""

from __future__ import annotations

from typing import Any

from timm.layers import GluMlp, SwiGLU
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer

from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.towers.timm_attention import ATTENTIONS, head_dim

MODELS, BLOCKS = (VisionTransformer, Eva), (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)


def vit_spec(model: Any) -> ModelSpec:
    """Sizes of a classifier, whose blocks take the place of the LLM's layers.

    Raises:
        ModelError: if it has parts that are not known to work on fewer patches.
    """
    if not isinstance(model, MODELS):
        allowed = " or ".join(kind.__name__ for kind in MODELS)
        raise ModelError(f"{type(model).__name__} cannot be pruned between its blocks; give a {allowed} of timm")
    sizes = {_block_spec(block, len(model.blocks)) for block in model.blocks}
    if len(sizes) > 1:
        raise ModelError("the blocks of this model differ in their sizes, which is not known to work")
    return ModelSpec(sizes.pop(), vocabulary=model.num_classes, visual_tokens=model.patch_embed.num_patches)


def _block_spec(block: Any, layers: int) -> TransformerSpec:
    """Sizes of all blocks, if they are as this one."""
    attention: Any = getattr(block, "attn", None)
    if type(block) not in BLOCKS or type(attention) not in ATTENTIONS:
        raise ModelError(f"blocks of type {type(block).__name__} with {type(attention).__name__} are not known to work")
    if getattr(attention, "gate", None) is not None:
        raise ModelError("blocks with gated attention are not known to work")
    heads = attention.num_heads
    return TransformerSpec(
        layers=layers,
        width=attention.proj.out_features,
        mlp_width=block.mlp.fc2.in_features,
        heads=heads,
        kv_heads=heads // getattr(attention, "num_kv_groups", 1),
        head_dim=head_dim(attention),
        mlp_matrices=3 if isinstance(block.mlp, GluMlp | SwiGLU) else 2,
    )
