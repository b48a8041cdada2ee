"""Greedy removal of operations, on divergences that are known."""

import numpy as np
import pytest
from study.greedy import removable, remove, without_dead_work

from tokenprune.core.plan import Operation

SOURCE, RECEIVER, MLP = Operation
PRICE = np.array([1.0, 2.0, 4.0])  # of a source, a receiver, an MLP


def cost(active):
    return float((active * PRICE).sum())


def everything(layers):
    return np.ones((layers, 3), bool)


def harm(weights):
    """A divergence that adds up the weights of what was removed."""
    return lambda active: float((np.asarray(weights) * ~active).sum())


def test_dead_work():
    active = everything(3)
    left = without_dead_work(active)
    assert left.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert active.all()  # untouched
    active[2, SOURCE] = False
    assert without_dead_work(active).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    active[1, SOURCE] = False
    assert without_dead_work(active).tolist() == [[True, False, False], [False] * 3, [False] * 3]


def test_what_a_hole_leaves_is_not_dead():
    active = everything(3)
    active[1, SOURCE] = False
    assert without_dead_work(active)[:2].tolist() == [[True] * 3, [False, True, True]]


def test_removable():
    active = without_dead_work(everything(3))
    free = removable(active, "free")
    assert free == [(1, SOURCE), (2, SOURCE), (0, RECEIVER), (1, RECEIVER), (0, MLP), (1, MLP)]
    assert removable(active, "depth_wise") == [(2, SOURCE), (1, RECEIVER), (1, MLP)]
    assert removable(np.array([[True, False, False]]), "free") == []


def test_the_order_is_by_divergence_over_saving():
    # Two layers: dead from the start are receiver and MLP of layer 1. K/V of layer 1 takes those of layer 0 with it.
    weights = [[0, 0.3, 0.4], [9, 0, 0]]
    path = list(remove(everything(2), harm(weights), cost))
    assert [(step.layer, step.operation) for step in path] == [(0, MLP), (0, RECEIVER), (1, SOURCE)]
    assert [step.divergence for step in path] == pytest.approx([0.4, 0.7, 9.7])
    assert [step.cost for step in path] == [4, 2, 1]
    cheap = list(remove(everything(2), harm([[0, 0.3, 0.7], [9, 0, 0]]), cost))
    assert [(step.layer, step.operation) for step in cheap][:2] == [(0, RECEIVER), (0, MLP)]  # 0.3 / 2 < 0.7 / 4


def test_a_source_takes_dead_work_with_it_and_is_credited_for_it():
    # Alone, the MLP is the best by a hair: 0.4 / 4 against (0.4 + 0.3 + 0.0) / (1 + 2 + 4) = 0.1 for K/V and all.
    path = list(remove(everything(2), harm([[0, 0.3, 0.4], [-0.01, 0, 0]]), cost))
    assert [(step.layer, step.operation) for step in path] == [(1, SOURCE)]
    assert path[0].active.tolist() == [[True, False, False], [False] * 3]
    assert path[0].cost == 1


def test_free_finds_a_hole_that_the_depth_wise_rule_cannot():
    weights = np.ones((3, 3))
    weights[0, MLP] = 0.1
    first = next(remove(everything(3), harm(weights), cost, "free"))
    assert (first.layer, first.operation) == (0, MLP)
    path = list(remove(everything(3), harm(weights), cost, "depth_wise"))
    assert (path[0].layer, path[0].operation) == (1, MLP)
    for step in path:  # nothing runs below what does not
        assert (step.active[:-1] >= step.active[1:]).all()
    assert path[-1].active.sum() == 1


def test_a_path_goes_on_from_any_of_its_steps():
    weights = np.random.default_rng(0).random((4, 3))
    path = list(remove(everything(4), harm(weights), cost))
    again = list(remove(path[3].active, harm(weights), cost))
    assert [(s.layer, s.operation) for s in again] == [(s.layer, s.operation) for s in path[4:]]
