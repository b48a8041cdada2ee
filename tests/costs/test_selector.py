"""FLOPs of choosing: what the counter counts in a real prefill beyond the plan."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.core.budget import Budget
from tokenprune.core.signals import KINDS, Encoder
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.core.steps import Step
from tokenprune.costs.flops import llm_prefill_flops, lm_head_flops
from tokenprune.costs.model_card import load_card
from tokenprune.costs.selector import selection_flops
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.pruners.base import PRUNERS, ScorePruner, create_pruner
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.towers.timm_features import EncoderSize

TOKENS = 25
WITHOUT_PRODUCTS = {
    "fastervlm",
    "flowcut",
    "globalcom2",
    "hiprune",
    "holov",
    "mustdrop",
    "pooling",
    "random",
    "resize",
    "uniform",
}  # their choice multiplies no matrices


def counted(name, options):
    """FLOPs of a real prefill of the tiny model beyond plan and LM head, and what is said of the selection."""
    adapter, pruner, budget = adapter_for(*shared_llava("eager")), create_pruner(name, **options), Budget(keep_tokens=7)
    inputs, spec = ask(adapter.processor, 1), adapter.spec
    text = inputs["input_ids"].shape[1] - TOKENS
    pruned = Session(adapter).prune_inputs(inputs, pruner, budget)
    with FlopCounterMode(display=False) as counter:
        Session(adapter).prefill(pruned)
    counts = pruner.schedule(spec, budget, TOKENS)
    alive = pruner.alive(spec, counts, TOKENS)
    plan = llm_prefill_flops(spec, pruner.plan(spec, alive, TOKENS), text) + lm_head_flops(spec)
    return counter.get_total_flops() - plan, selection_flops(
        spec, pruner.steps(spec), counts, (TOKENS, *alive[:-1]), text
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniform", {}),
        ("random", {"layer": 2}),
        ("fastv", {"layer": 1}),
        ("fastv", {"layer": 3}),
        ("pyramiddrop", {}),
        ("dart", {"layer": 2}),
        ("dop", {"base": "uniform", "attention_depth": 3, "mlp_depth": 1}),
        ("dop", {"base": "uniform", "attention_depth": 3, "mlp_depth": 1, "attention": "update_only"}),
        ("dop", {"base": {"name": "fastv", "layer": 1}, "attention_depth": 3, "query_depth": 2, "mlp_depth": 1}),
    ],
)
def test_a_real_prefill_is_plan_and_selection(name, options):
    beyond, said = counted(name, options)
    assert beyond == said


@pytest.mark.parametrize("version", ["v1", "plus"])
def test_all_text_is_the_most_that_raters_can_be(version):
    beyond, said = counted("sparsevlm", {"version": version})
    assert 0 < beyond < said


@pytest.mark.parametrize("name", [name for name in PRUNERS.names() if name not in ("compose", "none")])
def test_every_pruner_can_be_asked(name):
    spec, pruner = load_card("llava-1.5-7b").spec, create_pruner(name)
    small = ModelSpec(spec.llm, spec.vocabulary, 80, spec.vision)
    counts = pruner.schedule(small, Budget(keep_tokens=8), 80)
    alive = pruner.alive(small, counts, 80)
    flops = selection_flops(small, pruner.steps(small), counts, (80, *alive[:-1]), 10)
    assert (flops == 0) == (name in WITHOUT_PRODUCTS)


@pytest.mark.parametrize("conditioning", sorted(CONDITIONINGS.names()))
def test_every_conditioning_can_be_asked(conditioning):
    spec, pruner = load_card("llava-1.5-7b").spec, create_pruner("cdpruner", conditioning=conditioning)
    assert selection_flops(spec, pruner.steps(spec), [8], [80], 10) > 0


@pytest.mark.parametrize("signal", [kind() for kind in KINDS.values() if kind.shape and kind is not Encoder], ids=str)
@pytest.mark.parametrize("stage", [PRE_LLM, decoder(2)])
def test_every_signal_has_a_stand_in(signal, stage):
    """A pruner may ask for any, one of somebody else's too."""

    class Asking(ScorePruner):
        requires = frozenset({signal})

        def score(self, tokens):
            assert tokens.signal(signal) is not None
            return tokens.features[..., 0]

    assert selection_flops(load_card("llava-1.5-7b").spec, [Step(stage, Asking(), "original")], [8], [80], 10) >= 0


def test_the_encoder_whose_features_are_compared_is_paid_for_each_tile():
    pruner, spec = create_pruner("divprune", features="timm:vit_tiny_patch16_224"), load_card("llava-next-7b").spec
    free, paid = (
        selection_flops(spec, pruner.steps(spec), [8], [80], 10, EncoderSize(24, flops)) for flops in (0, 1000)
    )
    assert paid == free + 5 * 1000
    wide = selection_flops(spec, pruner.steps(spec), [8], [80], 10, EncoderSize(48, 0))
    assert wide == 2 * free  # the products of features are all that there is


def test_a_selection_before_the_llm_reads_nothing_of_it():
    spec, (step,) = load_card("llava-1.5-7b").spec, create_pruner("fastv").steps(load_card("llava-1.5-7b").spec)
    assert selection_flops(spec, [step], [8], [80], 10) == 2 * 4096 * 90
    before = Step(create_pruner("uniform").steps(spec)[0].stage, step.selector, step.positions)
    assert selection_flops(spec, [before], [8], [80], 10) == 0


def test_it_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    test_a_selection_before_the_llm_reads_nothing_of_it()
    assert torch.equal(state, torch.get_rng_state())
