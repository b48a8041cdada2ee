"""The counter: what PyTorch's own leaves out on a CPU, and the same as the product of matrices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.costs.counter import counter

SDPA = torch.nn.functional.scaled_dot_product_attention


def attention(heads=4, kv_heads=4, asking=5, keys=9, dim=8, **options):
    q, k, v = (torch.randn(2, h, n, dim) for h, n in ((heads, asking), (kv_heads, keys), (kv_heads, keys)))
    with counter() as flops, torch.no_grad():
        SDPA(q, k, v, **options)
    return flops.get_total_flops()


@pytest.mark.parametrize("mask", [None, torch.ones(5, 9, dtype=torch.bool).tril()], ids=["none", "mask"])
def test_attention_on_a_cpu_is_the_whole_square(mask):
    assert attention(attn_mask=mask) == 2 * 4 * 4 * 5 * 9 * 8


def test_causal_attention_is_the_whole_square():
    assert attention(keys=5, is_causal=True) == 2 * 4 * 4 * 5 * 5 * 8


def test_grouped_queries_ask_with_all_heads():
    assert attention(kv_heads=2, enable_gqa=True) == 2 * 4 * 4 * 5 * 9 * 8


def test_as_shipped_it_is_nothing():
    """If this fails, torch has learned it, and ``counter`` can go."""
    q = torch.randn(1, 2, 5, 8)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        SDPA(q, q, q)
    assert flops.get_total_flops() == 0


def test_the_rest_is_as_shipped():
    layer, x = torch.nn.Conv1d(4, 6, 3), torch.randn(2, 4, 10)
    with counter() as flops, torch.no_grad():
        layer(x)
        x[0] @ x[0].T
    assert flops.get_total_flops() == 2 * 2 * 8 * 6 * 4 * 3 + 2 * 4 * 4 * 10
