"""The solver against a search by hand over all policies, dead ones included."""

import itertools
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.pruners.dop.cost import average_tokens, flops, milliseconds
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.solve import Candidate, solve

LAYERS, TOTAL, TEXT = 4, 6, 3
SPEC = ModelSpec(TransformerSpec(LAYERS, 8, 20, 4, 2, 2, 3), vocabulary=10, visual_tokens=TOTAL)
LATENCY = LatencyModel((0.3, 0.02, 0.05, 0.001), (0.2, 0.07))
COSTS = [flops(SPEC, TEXT), average_tokens(), milliseconds(LATENCY, TEXT)]
READINGS = ["two depths", "three depths", "update only"]


def curves_of(reading, seed=0, layers=LAYERS, total=TOTAL):
    draw = random.Random(seed)

    def measured(values, scale):
        return {value: draw.random() * scale * (1 - value / (values[-1] + 1)) for value in values}

    options = {"query": measured(range(0, layers - 1, 2), 2)} if reading == "three depths" else {}
    return Curves.of(
        layers,
        total,
        attention=measured(range(0, layers - 1, 2), 4),
        mlp=measured(range(layers - 1), 2),
        tokens=measured(range(1, total - 1, 2), 3),
        update_only=reading == "update only",
        **options,
    )


def everything(curves, cost, spec=SPEC):
    """All policies, each with its predicted divergence and cost; equal work appears once, by its best prediction."""
    found = {}
    depths = range(curves.attention.full + 1)
    for attention, mlp, query in itertools.product(depths, range(curves.mlp.full + 1), range(curves.layers)):
        last = curves.layers - 1 if curves.update_only else max(attention - 1, 0)
        if mlp > last or (not curves.update_only and query > last):
            continue
        if query != last and not curves.query:
            continue
        for keep in range(1, curves.visual_tokens + 1):
            free = {"update_only": True} if curves.update_only else {"query": query}
            policy = Depths(attention=attention, mlp=mlp, keep=keep, **free)
            divergence = curves.attention.values[attention] + curves.mlp.values[mlp] + curves.tokens.values[keep]
            divergence += curves.query.values[query] if curves.query else 0
            plan = policy.normalised(curves.layers).plan(spec, curves.visual_tokens)
            work = (plan.active[:, :, 1].numpy().tobytes(), keep if policy.sources(curves.layers) else 0)
            if work not in found or divergence < found[work][1]:
                found[work] = (policy, float(divergence), cost.of(plan))
    return list(found.values())


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.kind)
@pytest.mark.parametrize("reading", READINGS)
def test_the_best_few_of_all(reading, cost):
    for seed in range(3):
        curves = curves_of(reading, seed)
        policies = everything(curves, cost)
        spent = sorted({price for _, _, price in policies})
        budgets = [spent[len(spent) * part // 7] for part in range(1, 7)]
        for budget, candidates in zip(budgets, solve(curves, cost, budgets, top=6), strict=True):
            best = {}  # of each combination of depths
            for policy, div, price in policies:
                if price <= budget * (1 + 1e-9) and np.isfinite(div):
                    shape = replace(policy, keep=1).normalised(LAYERS)
                    best[shape] = min(best.get(shape, (np.inf,)), (div, price))
            expected = sorted(best.values())[:6]
            assert [c.predicted for c in candidates] == pytest.approx([div for div, _ in expected], rel=1e-12)
            assert [c.cost for c in candidates] == pytest.approx([price for _, price in expected], rel=1e-12)
            assert len({replace(c.depths, keep=1) for c in candidates}) == len(candidates)


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.kind)
@pytest.mark.parametrize("reading", READINGS)
def test_candidates_are_what_they_say(reading, cost):
    """Cost and prediction are those of the plan and the curves, nothing dead is in it, and no two are the same."""
    curves = curves_of(reading)
    budgets = [cost.of(Depths(attention=4, mlp=4, keep=keep).plan(SPEC, TOTAL)) for keep in range(1, TOTAL + 1)]
    found = solve(curves, cost, budgets, top=5)
    for candidate in itertools.chain(*found):
        depths = candidate.depths
        assert depths == depths.normalised(LAYERS)
        assert candidate.cost == pytest.approx(cost.of(depths.plan(SPEC, TOTAL)), rel=1e-12)
        parts = [curves.attention.values[depths.attention], curves.mlp.values[depths.mlp]]
        parts += [curves.tokens.values[depths.keep]]
        parts += [curves.query.values[depths.query]] if curves.query else []
        assert candidate.predicted == pytest.approx(sum(parts), rel=1e-12)
        assert candidate.measured is None
    for candidates in found:
        order = [(candidate.predicted, candidate.cost) for candidate in candidates]
        assert order == sorted(order)
    assert len(found[-1]) == 5


def test_of_equally_good_numbers_of_tokens_the_fewest():
    curves = Curves.of(LAYERS, TOTAL, attention={2: 0.1}, mlp={1: 0.1}, tokens={1: 0.3, 2: 0.1, 4: 0.1, 5: 0.1})
    five = Depths(attention=4, mlp=3, query=3, keep=5)
    (candidates,) = solve(curves, COSTS[0], [COSTS[0].of(five.plan(SPEC, TOTAL))], top=100)
    keep = {(c.depths.attention, c.depths.mlp): c.depths.keep for c in candidates}
    assert keep[4, 3] == 2  # up to five are affordable and no better
    assert keep[2, 1] == TOTAL


def test_enough_budget_prunes_nothing_but_dead_work():
    for reading in READINGS:
        ((best,),) = solve(curves_of(reading), COSTS[0], [1e9], top=1)
        whole = Depths(attention=LAYERS, mlp=LAYERS, keep=TOTAL, update_only=reading == "update only")
        assert best.depths == whole.normalised(LAYERS)
        assert best.predicted == 0


def test_many_budgets_are_as_one_by_one():
    curves, cost = curves_of("two depths"), COSTS[0]
    ((cheapest, *_),) = solve(curves, cost, [1e9], top=1000)
    budgets = [cheapest.cost * share for share in (0.9, 0.7, 0.8)]
    assert solve(curves, cost, budgets) == [solve(curves, cost, [budget])[0] for budget in budgets]
    assert solve(curves, cost, []) == []


def test_uniform_pruning_is_among_the_policies():
    """At the cost of plain token pruning the best prediction is at most that of plain token pruning."""
    curves, cost = curves_of("two depths"), COSTS[0]
    for keep in range(1, TOTAL + 1):
        budget = cost.of(Depths(attention=LAYERS, mlp=LAYERS, keep=keep).plan(SPEC, TOTAL))
        ((best,),) = solve(curves, cost, [budget], top=1)
        assert best.predicted <= curves.tokens.values[keep]


def test_nothing_below_the_smallest_measurement_is_chosen():
    curves = Curves.of(LAYERS, TOTAL, attention={2: 0.1}, mlp={1: 0.1}, tokens={3: 0.1})
    (candidates,) = solve(curves, COSTS[0], [1e9], top=10_000)
    assert {(c.depths.attention, c.depths.mlp) for c in candidates} == {(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)}
    least = Depths(attention=2, query=1, mlp=1, keep=3)
    price = COSTS[0].of(least.plan(SPEC, TOTAL))
    with pytest.raises(BudgetError, match="costs 1000 flops or less; the least is") as error:
        solve(curves, COSTS[0], [1000])
    assert str(error.value).endswith(f"{price:g}")
    assert solve(curves, COSTS[0], [price])[0][0].depths == least


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ([0.0], {}, "a budget must be a positive number of flops, got 0.0"),
        ([float("inf")], {}, "a budget must be a positive number of flops, got inf"),
        ([float("nan")], {}, "a budget must be a positive number of flops, got nan"),
        ([1e9, 1.0], {}, "no policy within the curves costs 1 flops or less; the least is"),
        ([1e9], {"top": 0}, "top must be at least 1, got 0"),
    ],
)
def test_impossible_requests(budgets, options, message):
    with pytest.raises(BudgetError) as error:
        solve(curves_of("two depths"), COSTS[0], budgets, **options)
    assert message in str(error.value)


def test_a_candidate_has_finite_numbers():
    with pytest.raises(ConfigError, match="measured must be a finite number, got nan"):
        Candidate(Depths(attention=1, mlp=0, keep=1), 0.1, 5.0, float("nan"))


def test_a_space_of_a_real_model_takes_less_than_a_second():
    """LLaVA-NeXT-7B: 33 * 33 * 2880 policies, of which 529 * 2880 have no dead work; three budgets."""
    llama = TransformerSpec(32, 4096, 11008, 32, 32, 128, 3)
    spec = ModelSpec(llama, vocabulary=32064, visual_tokens=2880)
    curves = curves_of("two depths", layers=32, total=2880)
    cost = flops(spec, 135)
    budgets = [cost.of(Depths(attention=32, mlp=32, keep=keep).plan(spec, 2880)) for keep in (640, 320, 160)]
    start = time.process_time()
    found = solve(curves, cost, budgets)
    assert time.process_time() - start < 1
    assert all(c.cost <= budget for budget, several in zip(budgets, found, strict=True) for c in several)
