"""Depths, and which work they leave out because nobody reads it."""

import itertools
import math
from dataclasses import replace

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.pruners.dop.depths import Depths

DEEPEST = 5  # layers of the largest toy


def spec_of(layers, visual_tokens=9):
    return ModelSpec(TransformerSpec(layers, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=visual_tokens)


def toy_output(plan):
    """A decoder of one text and one visual token, both numbers: what the text is at the end."""
    text, visual = 0.3, 0.7
    for layer, (source, receiver, mlp) in enumerate(plan.active[:, :, 1].tolist(), 1):
        seen = text + (2 * visual if source else 0)
        visual += math.cos(layer * seen + visual) if receiver else 0
        text += math.sin(layer * seen + text)
        visual += math.cos(3 * visual + layer) if mlp else 0
        text += math.sin(5 * text + layer)
    return text


def all_depths(layers):
    depths = range(layers + 1)
    yield from (Depths(attention=a, mlp=p, query=q, keep=4) for a, p, q in itertools.product(depths, depths, depths))
    for update_only, attention, mlp in itertools.product((False, True), depths, depths):
        yield Depths(attention=attention, mlp=mlp, keep=4, update_only=update_only)


@pytest.mark.parametrize("layers", range(1, DEEPEST + 1))
def test_dead_work_is_work_that_does_not_change_the_output(layers):
    spec = spec_of(layers)
    for depths in all_depths(layers):
        assert toy_output(depths.plan(spec, 9)) == toy_output(depths.normalised(layers).plan(spec, 9)), depths


@pytest.mark.parametrize("layers", range(1, DEEPEST + 1))
def test_no_dead_work_is_left(layers):
    """Whichever operation ends a layer earlier, the output changes."""
    spec = spec_of(layers)
    for depths in {depths.normalised(layers) for depths in all_depths(layers)}:
        output = toy_output(depths.plan(spec, 9))
        for name in ("attention", "mlp", "query"):
            if depth := getattr(depths, name):
                less = replace(depths, **{name: depth - 1})
                assert abs(toy_output(less.plan(spec, 9)) - output) > 1e-9, (depths, name)


@pytest.mark.parametrize("layers", range(1, DEEPEST + 1))
def test_normalising_again_changes_nothing(layers):
    for depths in all_depths(layers):
        once = depths.normalised(layers)
        assert once.normalised(layers) == once


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"attention": 6, "mlp": 6}, {"attention": 6, "query": 5, "mlp": 5}),
        ({"attention": 6, "mlp": 2}, {"attention": 6, "query": 5, "mlp": 2}),
        ({"attention": 3, "mlp": 5}, {"attention": 3, "query": 2, "mlp": 2}),
        ({"attention": 5, "mlp": 3, "query": 1}, {"attention": 5, "query": 1, "mlp": 3}),
        ({"attention": 0, "mlp": 4}, {"attention": 0, "query": 0, "mlp": 0}),
        ({"attention": 6, "mlp": 6, "update_only": True}, {"attention": 5, "mlp": 5, "update_only": True}),
        ({"attention": 2, "mlp": 4, "update_only": True}, {"attention": 2, "mlp": 4, "update_only": True}),
    ],
)
def test_normalised_by_hand(given, expected):
    assert Depths(**given, keep=7).normalised(6) == Depths(**expected, keep=7)


def test_plan_by_hand():
    plan = Depths(attention=3, query=2, mlp=1, keep=4).plan(spec_of(4), 9)
    counts = {op: [plan.tokens(layer, op) for layer in range(4)] for op in Operation}
    assert counts == {
        Operation.ATTENTION_SOURCE: [4, 4, 4, 0],
        Operation.ATTENTION_RECEIVER: [4, 4, 0, 0],
        Operation.MLP: [4, 0, 0, 0],
    }
    assert plan.group_sizes == (5, 4)
    assert plan.mean_tokens == 3


def test_update_only_keeps_keys_and_values():
    plan = Depths(attention=1, mlp=2, keep=4, update_only=True).plan(spec_of(4), 9)
    assert plan.active[:, :, 1].T.tolist() == [[True] * 4, [True, False, False, False], [True, True, False, False]]


def test_token_pruning_is_a_special_case():
    spec = spec_of(4)
    expected = OperationPlan.drop_at(spec, [PRE_LLM], [4], 9)
    for update_only in (False, True):
        plan = Depths(attention=4, mlp=4, keep=4, update_only=update_only).plan(spec, 9)
        assert plan.group_sizes == expected.group_sizes
        assert plan.active.equal(expected.active)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": -1}, "attention must be an integer of at least 0, got -1"),
        ({"mlp": 1.5}, "mlp must be an integer of at least 0, got 1.5"),
        ({"query": -2}, "query must be an integer of at least 0, got -2"),
        ({"keep": 0}, "keep must be an integer of at least 1, got 0"),
        ({"attention": True}, "attention must be an integer of at least 0, got True"),
        ({"query": 1, "update_only": True}, "query has no meaning with update_only"),
    ],
)
def test_impossible_depths(options, message):
    with pytest.raises(ConfigError) as error:
        Depths(**{"attention": 2, "mlp": 2, "keep": 3} | options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": 5}, "attention=5, mlp=1, keep=3 goes 5 layers deep, but the LLM has 4"),
        ({"mlp": 5}, "attention=1, mlp=5, keep=3 goes 5 layers deep, but the LLM has 4"),
        ({"query": 6}, "attention=1, mlp=1, keep=3, query=6 goes 6 layers deep, but the LLM has 4"),
        ({"keep": 10}, "attention=1, mlp=1, keep=10 keeps 10 visual tokens, but there are 9"),
    ],
)
def test_a_model_that_is_too_small(options, message):
    depths = Depths(**{"attention": 1, "mlp": 1, "keep": 3} | options)
    with pytest.raises(ConfigError) as error:
        depths.plan(spec_of(4), 9)
    assert str(error.value) == message
    if "keep" not in options:
        with pytest.raises(ConfigError, match="layers deep"):
            depths.normalised(4)
