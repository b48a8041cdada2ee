"""A policy whose parts contradict each other is refused."""

from dataclasses import replace

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.policy import Limit, Objective

LATENCY = LatencyModel((1.0,) * 4, (1.0,) * 2)


def test_depths_are_those_chosen(policy, spec):
    assert policy.depths == policy.chosen.depths != policy.candidates[0].depths
    policy.check(spec)


@pytest.mark.parametrize(
    ("layers", "visual_tokens", "message"),
    [(2, 40, "layers deep, but the LLM has 2"), (6, 3, "visual tokens, but there are 3")],
)
def test_a_smaller_model(two_depths, spec, layers, visual_tokens, message):
    smaller = ModelSpec(replace(spec.llm, layers=layers), spec.vocabulary, visual_tokens)
    with pytest.raises(ConfigError, match=message):
        two_depths.check(smaller)


def test_a_larger_model(two_depths, spec):
    two_depths.check(ModelSpec(replace(spec.llm, layers=60), spec.vocabulary, 400))


def test_parts_must_agree(two_depths):
    def changed(**options):
        with pytest.raises(ConfigError) as error:
            replace(two_depths, **options)
        return str(error.value)

    def with_depths(**options):
        return replace(two_depths.chosen, depths=Depths(**{"attention": 2, "mlp": 1, "keep": 9} | options))

    reading = "attention is 'remove', but not in all depths and curves"
    assert changed(chosen=with_depths(update_only=True)) == reading
    assert changed(candidates=(with_depths(update_only=True),)) == reading
    assert changed(curves=replace(two_depths.curves, attention=two_depths.curves.mlp, update_only=True)) == reading
    assert changed(objective=Objective(samples=1, attention="update_only")).startswith("attention is 'update_only'")
    assert "goes 7 layers deep, but the LLM has 6" in changed(chosen=with_depths(attention=7))
    assert "keeps 41 visual tokens, but there are 40" in changed(candidates=(with_depths(keep=41),))
    assert changed(base={"theta": 0.5}) == "base needs the name of a pruner, got None"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 0.0}, "value must be a positive number, got 0.0"),
        ({"value": float("inf")}, "value must be a positive number, got inf"),
        ({"text_tokens": -1}, "text_tokens must be at least 0, got -1"),
        ({"kind": "milliseconds"}, "a latency model belongs to a budget of milliseconds and to no other"),
        ({"latency": LATENCY}, "a latency model belongs to a budget of milliseconds and to no other, got flops"),
    ],
)
def test_impossible_limits(options, message):
    with pytest.raises(ConfigError) as error:
        Limit(**{"kind": "flops", "value": 1.0} | options)
    assert message in str(error.value)


def test_samples():
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        Objective(samples=0)
