"""PyTorch's counter of FLOPs, attention on a CPU included, which it does not know as shipped.

It sees what runs: matrix products, convolutions and attention, two FLOPs a multiply-add. Norms, activations, rotations
and softmax are not counted. Attention is the whole square of queries and keys, whatever a mask hides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

KERNELS = (  # of torch.nn.functional.scaled_dot_product_attention; its plain implementation is made of products
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


def counter() -> FlopCounterMode:
    """A context manager that counts the FLOPs of what runs inside: ``get_total_flops()``."""
    formulas = {getattr(torch.ops.aten, name): _attention for name in KERNELS}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of scores and of their sums of values, from the shapes (B, H, L, d) of a kernel's arguments."""
    batch, heads, asking, dim = query
    return 2 * int(batch * heads * asking * key[2] * (dim + value[3]))
