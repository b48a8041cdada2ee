"""Schedules under a budget of FLOPs, for pruners before the LLM, inside it, and of operations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.pruners.base import create_pruner

SPEC = ModelSpec(TransformerSpec(8, 64, 160, 4, 2, 16, 3), vocabulary=50, visual_tokens=60)
TOTAL = 60
CASES = {
    "cdpruner": {},
    "random": {"layer": 3},
    "fastv": {"layer": 1},
    "pyramiddrop": {"layers": (2, 4), "ratios": (0.5, 0.25)},
    "sparsevlm": {"layers": (1, 3, 5)},
    "dart": {"layer": 2},
    "compose": {"pruners": ("uniform", {"name": "fastv", "layer": 3})},
    "dop": {"base": "uniform", "attention_depth": 5, "mlp_depth": 3},
    "dop over fastv": {"base": {"name": "fastv", "layer": 2}, "attention_depth": 6, "mlp_depth": 2},
    "dop of groups": {"base": "uniform", "shares": (0.5, 0.5), "attention_depth": (7, 3), "mlp_depth": (4, 1)},
    "dop update": {"base": "uniform", "attention": "update_only", "attention_depth": 2, "mlp_depth": 2},
}
pruners = pytest.mark.parametrize("name", CASES)
texts = st.integers(0, 80)


def make(name):
    return create_pruner(name.partition(" ")[0], **CASES[name])


def spent(pruner, counts, text, total=TOTAL):
    return llm_prefill_flops(SPEC, pruner.plan(SPEC, pruner.alive(SPEC, counts, total), total), text)


@pruners
@settings(max_examples=20, deadline=None)
@given(text=texts, keep=st.integers(1, TOTAL - 1), extra=st.integers(0, 10**9))
def test_as_many_tokens_as_the_flops_allow(name, text, keep, extra):
    pruner = make(name)
    low, high = (spent(pruner, pruner.counts(SPEC, k, TOTAL), text) for k in (keep, keep + 1))
    assert low <= high
    budget = low + extra % max(high - low, 1)
    counts = pruner.schedule(SPEC, Budget(flops=budget, text_tokens=text), TOTAL)
    assert spent(pruner, counts, text) == low  # not more than the budget, and one more token would be


@pruners
@settings(max_examples=20, deadline=None)
@given(text=texts, shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)))
def test_more_flops_never_mean_fewer_tokens(name, text, shares):
    pruner = make(name)
    least, most = (spent(pruner, pruner.counts(SPEC, k, TOTAL), text) for k in (1, TOTAL))
    budgets = sorted(least + share * (most - least) for share in shares)
    lower, higher = (pruner.schedule(SPEC, Budget(flops=b, text_tokens=text), TOTAL) for b in budgets)
    if name == "sparsevlm":  # whose published first stage keeps 303 tokens where 36 are left, and 300 where 110 are
        lower, higher = lower[1:], higher[1:]
    assert all(a <= b for a, b in zip(lower, higher, strict=True))


@pruners
def test_everything_and_too_little(name):
    pruner = make(name)
    most = spent(pruner, pruner.counts(SPEC, TOTAL, TOTAL), 9)
    assert pruner.schedule(SPEC, Budget(flops=most, text_tokens=9), TOTAL)[-1] == TOTAL
    with pytest.raises(BudgetError, match="that all 60 visual tokens cost"):
        pruner.schedule(SPEC, Budget(flops=most + 1, text_tokens=9), TOTAL)
    with pytest.raises(BudgetError, match="with one visual token kept, the decoder layers cost"):
        pruner.schedule(SPEC, Budget(flops=0.9 * spent(pruner, pruner.counts(SPEC, 1, TOTAL), 9), text_tokens=9), TOTAL)


def test_the_flops_of_some_uniform_tokens_buy_uniform_those_and_dop_more():
    whole = OperationPlan.drop_at(SPEC, make("cdpruner").stages(SPEC), (20,), TOTAL)
    budget = Budget(flops=llm_prefill_flops(SPEC, whole, 9), text_tokens=9)
    assert make("cdpruner").schedule(SPEC, budget, TOTAL) == (20,)
    assert make("dop").schedule(SPEC, budget, TOTAL)[0] > 20
    assert make("fastv").schedule(SPEC, budget, TOTAL)[0] < 20


def test_text_is_paid_for_from_the_same_budget():
    budget = spent(make("cdpruner"), (20,), 0)
    kept = [make("cdpruner").schedule(SPEC, Budget(flops=budget, text_tokens=t), TOTAL)[0] for t in (0, 5, 15)]
    assert kept == [20, 15, 5]  # a token is a token
