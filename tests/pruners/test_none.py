"""No pruning is a pruner like any other: it has no stage, and whoever runs it runs the model itself."""

import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ConfigError
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.engine.loading import session_for
from tokenprune.pruners.base import create_pruner
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruner_on_models import TINY


def test_it_has_no_stage_and_keeps_all():
    none = create_pruner("none")
    assert none.steps(TINY) == ()
    assert none.alive(TINY, none.schedule(TINY, tp.Budget(keep_tokens=3), 25), 25) == ()
    plan = none.plan(TINY, (), 25)
    assert plan.mean_tokens == 25
    assert llm_prefill_flops(TINY, plan, 9) == llm_prefill_flops(TINY, tp.OperationPlan.drop_at(TINY, (), (), 25), 9)


def test_it_selects_what_is_valid():
    valid = torch.tensor([[True, True, True], [True, True, False]])
    chosen = create_pruner("none").select(tp.VisualTokens(torch.ones(2, 3, 4), valid=valid), 1)
    assert torch.equal(chosen.keep, torch.tensor([[0, 1, 2], [0, 1, -1]]))


@pytest.mark.parametrize("budget", [{}, {"keep_tokens": 3}])
def test_a_block_with_it_is_the_model(budget):
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 2)
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with tp.prune(model, processor, "none", **budget) as trace:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    assert trace.calls == []


def test_a_session_encodes_and_drops_nothing():
    model, processor = shared_llava("sdpa")
    session, inputs = session_for(model, processor), ask(processor, 1)
    pruned = session.prune_inputs(inputs, create_pruner("none"))
    assert bool(pruned.kept.all())
    assert pruned.chosen == ()
    assert pruned.inside is None


def test_it_can_be_the_base_of_operation_pruning():
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1)
    with tp.prune(model, processor, "dop", base="none", mlp_depth=2, keep_ratio=1.0) as trace:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert trace.counts == [(25, 25)]


def test_it_has_no_options_and_no_place_in_a_composition():
    with pytest.raises(ConfigError, match="pruner 'none' has no option 'layer'"):
        create_pruner("none", layer=2)
    with pytest.raises(ConfigError, match="NoPruning in a composition does nothing; leave it out"):
        create_pruner("compose", pruners=("fastv", "none"))
