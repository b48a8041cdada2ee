"""What the attention modules of timm's ViTs hand to their kernel: keys, and the attention of the CLS token.

Fused kernels give no weights, so the one row that methods read is computed again, from the module's own input.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from tokenprune.core.precision import exact
from tokenprune.core.signals import Signal, TowerAttention, TowerKeys
from tokenprune.functional.vectors import widen

ATTENTIONS = (Attention, AttentionRope, EvaAttention)


@torch.no_grad()
def attention_signals(
    attention: Any, hidden: Tensor, rope: Tensor | None, prefix: int, requires: frozenset[Signal]
) -> dict[Signal, Tensor]:
    """Signals of the patches in one layer.

    Args:
        attention: one of ``ATTENTIONS``.
        hidden: (B, L, D), what it was given: prefix tokens, CLS first, then patches.
        rope: rotary embeddings of the patches that it was given, or None.
        prefix: number of prefix tokens, which are not rotated.
        requires: ``TowerKeys`` (B, N, C) after normalisation and rotation, and ``TowerAttention`` (B, H, N), a part of
            a softmax over all L tokens, are given as far as required.
    """
    keys = attention.k_norm(_heads(attention, hidden, 1))
    if rope is not None:
        rotated = apply_rot_embed_cat(keys[:, :, prefix:], rope, half=getattr(attention, "rotate_half", False))
        keys = torch.cat([keys[:, :, :prefix], rotated.to(keys)], 2)
    found: dict[Signal, Tensor] = {}
    if TowerKeys() in requires:
        found[TowerKeys()] = rearrange(keys[:, :, prefix:], "b h n d -> b n (h d)")
    if TowerAttention("cls") in requires:
        query = widen(attention.q_norm(_heads(attention, hidden[:, :1], 0)))
        keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)  # grouped heads share theirs
        with exact(query.device):
            scores = query @ widen(keys).mT * attention.scale
        found[TowerAttention("cls")] = scores.softmax(-1)[:, :, 0, prefix:]
    return found


def head_dim(attention: Any) -> int:
    """Numbers in one head; not all versions of timm have the attribute."""
    width: int = attention.proj.in_features
    return width // int(attention.num_heads)


def _heads(attention: Any, x: Tensor, part: int) -> Tensor:
    """Queries (part 0) or keys (part 1), (B, H, L, d), before normalisation."""
    return rearrange(_project(attention, x, part), "b l (h d) -> b h l d", d=head_dim(attention))


def _project(attention: Any, x: Tensor, part: int) -> Tensor:
    """Projected queries, keys or values, (B, L, H * d)."""
    joint = attention.qkv
    if joint is None:
        projected: Tensor = (attention.q_proj, attention.k_proj)[part](x)
        return projected
    size = attention.num_heads * head_dim(attention)
    own = slice(part * size, (part + 1) * size)
    bias = getattr(attention, ("q_bias", "k_bias")[part], None)  # EVA's, beside a projection without one
    if type(joint) is nn.Linear:
        return nn.functional.linear(x, joint.weight[own], bias if joint.bias is None else joint.bias[own])
    whole: Tensor = joint(x)  # an adapter or a quantised layer: only it knows its weights
    return whole[..., own] if bias is None else whole[..., own] + bias
