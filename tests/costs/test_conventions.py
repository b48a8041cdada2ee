"""Published FLOPs, each found again from the sizes of the model alone."""

import pytest
import torch

from tokenprune.core.budget import Budget
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.stages import PRE_LLM
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.pruners.base import create_pruner
from tokenprune.pruners.dop.depths import Depths

TERA, MIB = 1e12, 2**20


def keep(card, tokens):
    spec = load_card(card).spec
    return spec, OperationPlan.drop_at(spec, [PRE_LLM], [tokens], spec.visual_tokens)


def count(convention, card, tokens, text=0):
    return CONVENTIONS[convention].prefill(*keep(card, tokens), text) / TERA


def fastv(card, **budget):
    """FastV as CDPruner's table has it: tokens leave at the input of layer 2."""
    spec, pruner = load_card(card).spec, create_pruner("fastv", layer=2)
    alive = pruner.alive(spec, pruner.schedule(spec, Budget(**budget), spec.visual_tokens), spec.visual_tokens)
    return spec, pruner.plan(spec, alive, spec.visual_tokens)


@pytest.mark.parametrize(
    ("card", "tokens", "published"),
    [
        *[("llava-next-7b", n, t) for n, t in {2880: 41.65, 640: 8.50, 320: 4.20, 160: 2.09}.items()],
        *[("llava-1.5-7b", n, t) for n, t in {576: 7.63, 128: 1.67, 64: 0.83, 32: 0.42}.items()],
    ],
)
def test_cdpruner(card, tokens, published):
    for text in (0, 40):  # which it does not count
        assert count("cdpruner", card, tokens, text) == pytest.approx(published, abs=0.0051)


@pytest.mark.parametrize(("tokens", "published"), [(2880, 79.9), (320, 8.2)])
def test_cdpruner_13b(tokens, published):
    assert count("cdpruner", "llava-next-13b", tokens) == pytest.approx(published, abs=0.051)


def test_cdpruner_saves_95_percent():
    assert round(100 * (1 - count("cdpruner", "llava-next-7b", 160) / count("cdpruner", "llava-next-7b", 2880))) == 95


@pytest.mark.parametrize(("card", "published"), [("llava-next-7b", 4.4), ("llava-next-13b", 8.5)])
def test_cdpruner_of_fastv(card, published):
    """Its row of 320 tokens is an average over the layers: 2880 in two of them, 150 in thirty."""
    assert CONVENTIONS["cdpruner"].prefill(*fastv(card, average_tokens=320), 0) / TERA == pytest.approx(
        published, abs=0.051
    )


@pytest.mark.parametrize(
    ("plan", "published"),
    [
        (keep("llava-next-7b", 2880), 1440.0),
        (keep("llava-next-7b", 320), 160.0),
        (fastv("llava-next-7b", average_tokens=320), 160.3),
        (keep("llava-next-13b", 2880), 2250.0),
        (keep("llava-next-13b", 320), 250.0),
    ],
)
def test_cdpruner_cache(plan, published):
    """Its MB are MiB of visual tokens in half precision. (FastV's 250.8 with 13B is no whole number of tokens.)"""
    assert sum(planned_kv_bytes_by_layer(*plan, 0, 2)) / MIB == pytest.approx(published, abs=0.051)


def test_fastv():
    assert count("fastv", "llava-1.5-7b", 576, 40) == pytest.approx(3.20, abs=0.0051)


def test_sparsevlm():
    assert count("sparsevlm", "llava-1.5-7b", 576, 40) == pytest.approx(4.09, abs=0.0051)


def test_gsop():
    """35 tokens of the system prompt and 100 of the question."""
    assert count("gsop", "llava-1.5-7b", 576, 135) == pytest.approx(9.474, abs=0.0005)


@pytest.mark.parametrize(("tokens", "published"), [(640, 77), (320, 86)], ids=["no loss", "1 % loss"])
def test_dop(tokens, published):
    """The two budgets are inferred; with 128 or 129 tokens of text they give the published percentages."""
    for text in (128, 129):
        whole = count("gsop", "llava-next-7b", 2880, text)
        assert round(100 * (1 - count("gsop", "llava-next-7b", tokens, text) / whole)) == published


GRID = {  # attention depth: most visual tokens, in steps of five, for MLP depths of 32, 24, 20, 16, 12, 8 and 4
    32: (320, 380, 420, 470, 530, 610, 715),
    28: (None, 400, 445, 500, 570, 665, 795),
    24: (None, 420, 475, 535, 620, 730, 890),
    20: (None, None, 505, 580, 675, 815, 1010),
    16: (None, None, None, 630, 745, 915, 1175),
    12: (None, None, None, None, 835, 1050, 1400),
}


@pytest.mark.parametrize("attention", GRID)
def test_what_dop_buys_for_320_uniform_tokens(attention):
    """By arithmetic of its own, dead work charged; the pruner leaves that out, and so affords a little more."""
    spec, uniform = keep("llava-next-7b", 320)
    budget = CONVENTIONS["gsop"].prefill(spec, uniform, 135)

    def fits(mlp, tokens):
        plan = Depths(attention=attention, mlp=mlp, keep=tokens).plan(spec, 2880)
        return CONVENTIONS["gsop"].prefill(spec, plan, 135) <= budget

    for mlp, most in zip((32, 24, 20, 16, 12, 8, 4), GRID[attention], strict=True):
        if most is not None:
            assert (fits(mlp, most), fits(mlp, most + 5)) == (True, False), (attention, mlp)
            dop = create_pruner("dop", base="uniform", attention_depth=attention, mlp_depth=mlp)
            assert most <= dop.schedule(spec, Budget(flops=budget, text_tokens=135), 2880)[0] < 1.08 * most


def test_gsop_charges_operations_apart():
    spec, plan = keep("llava-1.5-7b", 576)
    d, m, layers, text = 4096, 11008, 32, 100
    for operation, saved in {
        Operation.ATTENTION_SOURCE: 4 * 576 * d**2 + 4 * 576 * (576 + text) * d,
        Operation.ATTENTION_RECEIVER: 4 * 576 * d**2 + 4 * 576 * (576 + text) * d,
        Operation.MLP: 6 * 576 * d * m,
    }.items():
        active = plan.active.clone()
        active[:, operation] = False
        less = CONVENTIONS["gsop"].prefill(spec, OperationPlan(active, plan.group_sizes), text)
        assert CONVENTIONS["gsop"].prefill(spec, plan, text) - less == layers * saved


@pytest.mark.parametrize("card", card_names())
def test_exact_is_what_is_reported(card):
    spec = load_card(card).spec
    active = torch.rand(spec.llm.layers, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    plan = OperationPlan(active, (100, 50))
    assert CONVENTIONS["exact"].prefill(spec, plan, 40) == llm_prefill_flops(spec, plan, 40)
    grouped = spec.llm.kv_heads < spec.llm.heads
    if spec.llm.heads * spec.llm.head_dim == spec.llm.width:  # else conventions are wrong about the heads, too
        assert (CONVENTIONS["gsop"].prefill(spec, plan, 40) > llm_prefill_flops(spec, plan, 40)) == grouped
