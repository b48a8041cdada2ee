"""Costs of many plans at once are those of the plans, one by one."""

import random

import numpy as np
import pytest
import torch

from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.pruners.dop.cost import average_tokens, flops, milliseconds
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel

LLAMA_7B = TransformerSpec(layers=32, width=4096, mlp_width=11008, heads=32, kv_heads=32, head_dim=128, mlp_matrices=3)
LLAVA_NEXT_7B = ModelSpec(LLAMA_7B, vocabulary=32064, visual_tokens=2880)
QWEN_LIKE = ModelSpec(TransformerSpec(7, 48, 100, 6, 2, 8, 3), vocabulary=10, visual_tokens=30)
LATENCY = LatencyModel((0.3, 0.02, 0.05, 0.001), (0.2, 0.07))


def random_depths(spec, number, seed=0):
    """Any depths whatever, queries deeper than keys and values among them."""
    draw = random.Random(seed)
    layers = spec.llm.layers
    for _ in range(number):
        update_only = draw.random() < 0.3
        yield Depths(
            attention=draw.randint(0, layers),
            mlp=draw.randint(0, layers),
            query=None if update_only or draw.random() < 0.3 else draw.randint(0, layers),
            keep=draw.randint(1, spec.visual_tokens),
            update_only=update_only,
        )


@pytest.mark.parametrize("spec", [QWEN_LIKE, LLAVA_NEXT_7B], ids=["gqa", "llava_next_7b"])
def test_flops_are_those_of_the_plan_exactly(spec):
    cost = flops(spec, text_tokens=13)
    for depths in random_depths(spec, 60):
        plan = depths.plan(spec, spec.visual_tokens)
        expected = llm_prefill_flops(spec, plan, 13)
        assert cost.of(plan) == expected
        assert cost.table(plan.active[None, :, :, 1].numpy(), [depths.keep]).tolist() == [[expected]]


@pytest.mark.parametrize(
    "cost", [flops(QWEN_LIKE, 5), average_tokens(), milliseconds(LATENCY, 5)], ids=lambda c: c.kind
)
def test_a_table_of_arbitrary_plans(cost):
    """Not only depth-wise ones."""
    torch.manual_seed(0)
    active = torch.rand(20, 7, 3) < 0.5
    keep = [1, 4, 30]
    table = cost.table(active.numpy(), keep)
    expected = [[cost.of(OperationPlan(one[:, :, None], (size,))) for size in keep] for one in active]
    np.testing.assert_allclose(table, expected, rtol=1e-14)


def test_average_tokens_are_those_of_the_plan_exactly():
    for depths in random_depths(QWEN_LIKE, 60):
        plan = depths.plan(QWEN_LIKE, 30)
        assert average_tokens().of(plan) == plan.mean_tokens
        assert average_tokens().table(plan.active[None, :, :, 1].numpy(), [depths.keep]).tolist() == [
            [plan.mean_tokens]
        ]


def test_milliseconds_by_hand():
    spec = ModelSpec(TransformerSpec(3, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=6)
    plan = Depths(attention=2, query=1, mlp=1, keep=4).plan(spec, 6)
    both, source, neither = (0.3 + 0.02 * s + 0.05 * r + 0.001 * s * r for s, r in ((14, 14), (14, 10), (10, 10)))
    mlps = 3 * 0.2 + 0.07 * (14 + 10 + 10)
    assert milliseconds(LATENCY, text_tokens=10).of(plan) == pytest.approx(both + source + neither + mlps)


# What the FLOPs of 320 of LLaVA-NeXT-7B's 2880 visual tokens (135 text tokens) buy in steps of 5 tokens, by the formula
# that GSOP, DOP's first version, charges: depth of attention, then that of the MLP to the number of visual tokens.
BOUGHT = {
    32: {32: 320, 24: 380, 20: 420, 16: 470, 12: 530, 8: 610, 4: 715},
    28: {24: 400, 20: 445, 16: 500, 12: 570, 8: 665, 4: 795},
    24: {24: 420, 20: 475, 16: 535, 12: 620, 8: 730, 4: 890},
    20: {20: 505, 16: 580, 12: 675, 8: 815, 4: 1010},
    16: {16: 630, 12: 745, 8: 915, 4: 1175},
    12: {12: 835, 8: 1050, 4: 1400},
}


def test_what_a_budget_buys():
    cost = flops(LLAVA_NEXT_7B, text_tokens=135)
    budget = cost.of(Depths(attention=32, mlp=32, keep=320).plan(LLAVA_NEXT_7B, 2880))
    assert budget / 1e12 == pytest.approx(6.00, abs=0.005)
    sizes = list(range(5, 2881, 5))
    found = {attention: {} for attention in BOUGHT}
    for attention, row in BOUGHT.items():
        for mlp in row:
            active = Depths(attention=attention, mlp=mlp, keep=1).plan(LLAVA_NEXT_7B, 2880).active[None, :, :, 1]
            affordable = cost.table(active.numpy(), sizes)[0] <= budget
            found[attention][mlp] = sizes[int(affordable.sum()) - 1]
    assert found == BOUGHT
