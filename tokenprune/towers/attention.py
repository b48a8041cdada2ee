"""Attention inside a vision tower, recomputed from the queries and keys of one layer: fast kernels give no weights.

Where a tower has a CLS token, its attention to the patches says which of them matter. Towers without one have what
patches receive: the mean over the attention of all patches of the same picture, as VisionZip does for them (Yang et
al., 2024, https://arxiv.org/abs/2412.04467). The tower itself runs under any kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.core.signals import Layer
from tokenprune.functional.vectors import widen

ROWS = 256  # of attention that are held at once, over all heads: memory is that of so many rows, not of all


def layer_index(layer: Layer, depth: int) -> int:
    """Which of ``depth`` layers a signal means, from 0."""
    return min(round(layer * depth), depth - 1) if isinstance(layer, float) else layer % depth


def mean_attention(key: Tensor, query: Tensor, scale: float) -> Tensor:
    """Attention (I, N, H) that each key gets, mean over the queries, as the eager implementation has it.

    Args:
        key: (I, N, H, d), as they meet the queries: after normalisation and rotation.
        query: (I, Q, H, d), likewise.
        scale: of the dot products.
    """
    key, query = widen(key), widen(query)
    total = key.new_zeros(key.shape[:3])
    with exact(key.device):
        for rows in torch.split(query, max(1, ROWS // len(query)), dim=1):
            scores = torch.einsum("iqhd,ikhd->iqhk", rows, key) * scale
            total += reduce(scores.softmax(-1), "i q h k -> i k h", "sum")
    return total / query.shape[1]


def attention_to(keys: Tensor, queries: Tensor, attention: Any) -> Tensor:
    """Attention that keys (I, N, C) get from queries (I, Q, C), heads side by side, of the module ``attention``."""
    key, query = (rearrange(x, "i l (h d) -> i l h d", h=attention.num_heads) for x in (keys, queries))
    return mean_attention(key, query, attention.scale)


def logits_to(keys: Tensor, queries: Tensor, attention: Any) -> Tensor:
    """What the attention of one query (I, 1, C) to keys (I, N, C) is before the softmax, (I, N, H); see the above."""
    key, query = (widen(rearrange(x, "i l (h d) -> i l h d", h=attention.num_heads)) for x in (keys, queries))
    with exact(key.device):
        products = torch.einsum("ihd,ikhd->ikh", query[:, 0], key)
    return products * float(attention.scale)


def received_in_pictures(key: Tensor, query: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Attention (P, H) that each patch receives from those of its own picture, where pictures are packed.

    Args:
        key: (P, H, d), after rotation.
        query: (P, H, d), likewise.
        lengths: patches of each picture.
        scale: of the dot products.
    """
    pictures = zip(torch.split(key, list(lengths)), torch.split(query, list(lengths)), strict=True)
    return torch.cat([mean_attention(k[None], q[None], scale)[0] for k, q in pictures])
