"""ViTs of timm as vision towers: classifiers, or towers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerAttention, TowerHeadMean, TowerKeys, TowerStates
from tokenprune.towers.base import TowerOutput
from tokenprune.towers.rows import RowTower
from tokenprune.towers.timm_attention import attention_signals, head_dim

POST_NORM = (ResPostBlock, EvaBlockPostNorm)  # whose attention is given the block's own input


@dataclass(frozen=True)
class TimmVision(RowTower):
    """A ``VisionTransformer`` or ``Eva`` of timm, see ``timm_sizes.vit_spec``; its config is the model itself."""

    def depth(self, config: Any) -> int:
        return len(config.blocks)

    def reads(self, config: Any) -> tuple[int, ...]:
        """The last block, behind which the classifier's head is."""
        return (self.depth(config) - 1,)

    def prefix(self, config: Any) -> int:
        """CLS, distillation and register tokens."""
        return int(config.num_prefix_tokens)

    def door(self, model: Any) -> Any:
        return model.patch_embed

    def layers(self, model: Any) -> Sequence[Any]:
        blocks: Sequence[Any] = model.blocks
        return blocks

    def attention_of(self, layer: Any) -> Any:
        return layer.attn

    def entering(self, layer: Any, hidden: Tensor) -> Tensor:
        normed: Tensor = hidden if type(layer) in POST_NORM else layer.norm1(hidden)
        return normed

    def before_mlp(self, layer: Any) -> Any:
        return layer.mlp if type(layer) in POST_NORM else layer.norm2

    def mlp_end(self, layer: Any) -> Any:
        return layer.drop_path2

    def head_dim(self, attention: Any) -> int:
        return head_dim(attention)

    def keys(self, signal: Signal, seen: TowerOutput) -> Tensor:
        """Keys of the patches, after normalisation and rotation."""
        return self._made(signal, TowerKeys(), seen)

    def attention(self, signal: Signal, seen: TowerOutput) -> Tensor:
        return rearrange(self._made(signal, TowerAttention("cls"), seen), "b h n -> b n h")

    def _made(self, signal: Signal, plain: Signal, seen: TowerOutput) -> Tensor:
        """A signal of a layer, as ``attention_signals`` gives it under the name ``plain``."""
        attention, x = self._attending(signal, seen)
        rope = seen.inputs[self.layer(signal, seen.config)].get("rope")
        return attention_signals(attention, x, rope, self.prefix(seen.config), frozenset({plain}))[plain]

    def check_bias(self, model: Any) -> None:
        """All kernels of timm take one."""

    def aligned(
        self, arguments: Mapping[str, Any], kept: Tensor | None, bias: Tensor | None = None
    ) -> Mapping[str, Any]:
        """The arguments of a block, rotary embeddings of the patches that are left among them."""
        if arguments.get("attn_mask") is not None or arguments.get("is_causal"):
            raise ModelError("attn_mask and is_causal are of all patches; leave them out where patches are pruned")
        rope = arguments.get("rope")
        mask = {} if bias is None else {"attn_mask": bias[:, None, None]}
        moved = {} if rope is None or kept is None else {"rope": _of_kept(rope, kept)}
        return {**arguments, **moved, **mask}


def _of_kept(rope: Tensor, kept: Tensor) -> Tensor:
    """Rotary embeddings ([B, or 1,] [heads, or 1,] N, d) of the patches that are left: (B, heads or 1, n, d)."""
    whole = rope.expand(len(kept), *rope.shape[-3:]) if rope.dim() > 2 else rope.expand(len(kept), 1, *rope.shape)
    index = kept.to(rope.device)[:, None, :, None]
    return whole.gather(2, index.expand(-1, whole.shape[1], -1, whole.shape[3]))


WITHOUT_CLS = TimmVision(frozenset({TowerHeadMean(), TowerKeys(), TowerStates()}))
TIMM = TimmVision(WITHOUT_CLS.offers | {TowerAttention("cls")})


def timm_tower(model: Any) -> TimmVision:
    """The kind of a classifier, by whether it has a CLS token."""
    return WITHOUT_CLS if model.cls_token is None else TIMM
