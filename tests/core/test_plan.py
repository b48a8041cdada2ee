"""Stages and operation plans."""

import pytest
import torch

from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM, check_stages, decoder

SPEC = ModelSpec(TransformerSpec(4, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=6)


def tokens(plan, operation=Operation.MLP):
    return [plan.tokens(layer, operation) for layer in range(4)]


def test_stages_have_names():
    assert str(decoder(2)) == "layer=2"
    assert str(PRE_LLM) == "pre_llm"


@pytest.mark.parametrize(
    "stages", [[], [PRE_LLM], [decoder(1)], [decoder(3)], [PRE_LLM, decoder(1), decoder(2), decoder(3)]]
)
def test_possible_stages(stages):
    check_stages(stages, layers=4, name="Mine")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([decoder(4)], "Mine prunes at layer=4, but the LLM has 4 layers; allowed: 1 to 3"),
        ([PRE_LLM, decoder(0)], "Mine prunes at layer=0, but the LLM has 4 layers; allowed: 1 to 3"),
        ([decoder(-1)], "Mine prunes at layer=-1"),
        (
            [decoder(2), decoder(2)],
            "Mine prunes at layer=2 and then at layer=2; each stage must come after the one before",
        ),
        ([PRE_LLM, PRE_LLM], "Mine prunes at pre_llm and then at pre_llm"),
        ([decoder(1), PRE_LLM], "Mine prunes at layer=1 and then at pre_llm"),
        ([decoder(1), decoder(3), decoder(2)], "Mine prunes at layer=3 and then at layer=2"),
    ],
)
def test_impossible_stages(stages, message):
    with pytest.raises(ConfigError) as error:
        check_stages(stages, layers=4, name="Mine")
    assert message in str(error.value)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(
    ("stages", "alive", "expected"),
    [
        ([PRE_LLM], [2], [2, 2, 2, 2]),
        ([decoder(2)], [2], [6, 6, 2, 2]),
        ([PRE_LLM, decoder(1), decoder(3)], [5, 4, 1], [5, 4, 4, 1]),
        ([decoder(1), decoder(2)], [3, 3], [6, 3, 3, 3]),
        ([decoder(3)], [0], [6, 6, 6, 0]),
        ([], [], [6, 6, 6, 6]),
    ],
)
def test_dropping_is_a_special_case_of_a_plan(stages, alive, expected, operation):
    plan = OperationPlan.drop_at(SPEC, stages, alive, total=6)
    assert tokens(plan, operation) == expected
    assert plan.mean_tokens == sum(expected) / 4


def test_mean_tokens_counts_keys_and_values():
    active = torch.ones(4, 3, 1, dtype=torch.bool)
    active[1:, Operation.ATTENTION_SOURCE] = False
    plan = OperationPlan(active, (6,))
    assert tokens(plan) == [6, 6, 6, 6]
    assert plan.mean_tokens == 6 / 4


def test_bad_plan():
    with pytest.raises(SelectionError, match="active"):
        OperationPlan(torch.ones(4, 3, 1, dtype=torch.bool), (2, 4))
