"""Replayed layers give what a forward of the whole model under the same plan gives."""

import functools
from contextlib import nullcontext

import pytest
import torch

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.plan import Operations
from tokenprune.engine.decoder.hooks import _ACTIVE, _FORWARD, InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan
from tokenprune.engine.decoder.replay import Replay
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.engine.prompt.shorten import fresh
from tokenprune.engine.session import Session
from tokenprune.pruners.none import NoPruning
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.pruners import LAYERS, Planned, depthwise, random_plan

TOTAL = 25
PLANS = [
    *(random_plan(seed) for seed in range(6)),
    *(depthwise(*d) for d in [(4, 3, 2), (3, 2, 2), (1, 0, 0), (4, 4, 0)]),
]
GROUPED = [random_plan(seed, 2 + seed % 2) for seed in range(4)]
EVERYTHING = Operations(torch.ones(LAYERS, 3, 1, dtype=torch.bool))


@functools.cache
def encoded(attention, rows):
    """The adapter, its inputs, and what the LLM gets of them."""
    model, processor = shared_llava(attention)
    adapter, inputs = adapter_for(model, processor), ask(processor, *rows)
    images = Session(adapter).encode(inputs)
    return adapter, inputs, images, Session(adapter).prune_inputs(inputs, NoPruning(), encoded=images).inputs


def replayed(attention, rows, last=1, plan=EVERYTHING):
    adapter, _, images, whole = encoded(attention, rows)
    prompt = prompt_tokens(
        (),
        adapter.placeholders(whole["input_ids"]),
        images.layout,
        torch.ones_like(images.layout.free),
        operations=plan,
    )
    return Replay(adapter.model, fresh(whole), prompt, last), prompt


@torch.no_grad()
def forward(adapter, pruned, last=1):
    """Logits of the whole model."""
    with InsideLLM(adapter.model, pruned.inside) if pruned.inside else nullcontext():
        return adapter.model(**fresh(pruned.inputs), use_cache=False, logits_to_keep=last).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "last"), [((1,), 1), ((2, 0, 1), 3)], ids=str)
def test_plans(attention, rows, last):
    adapter, inputs, images, _ = encoded(attention, rows)
    replay, _ = replayed(attention, rows, last)
    for plan in PLANS:
        pruned = Session(adapter).prune_inputs(inputs, Planned(given=plan), Budget(keep_tokens=TOTAL), encoded=images)
        wanted = forward(adapter, pruned, last)
        torch.testing.assert_close(replay.under(plan), wanted, atol=1e-5, rtol=0)
        assert not torch.allclose(wanted, replay.logits, atol=1e-3)  # the plan does something


def test_a_block_around_the_model():
    adapter, inputs, _, _ = encoded("sdpa", (1, 2))
    replay, _ = replayed("sdpa", (1, 2), 2)
    with torch.no_grad(), tp.prune(adapter.model, adapter.processor, Planned(given=PLANS[1]), keep_tokens=TOTAL):
        wanted = adapter.model(**inputs, position_ids=adapter.positions(inputs), logits_to_keep=2).logits
    torch.testing.assert_close(replay.under(PLANS[1]), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("plan", GROUPED, ids=lambda plan: f"{len(plan.shares)} groups")
def test_groups(plan):
    adapter, _, _, whole = encoded("sdpa", (1, 2))
    replay, prompt = replayed("sdpa", (1, 2), 2, plan)
    with torch.no_grad(), InsideLLM(adapter.model, InsidePlan((), prompt, plan.active)):
        wanted = adapter.model(**fresh(whole), logits_to_keep=2).logits
    torch.testing.assert_close(replay.under(plan), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_depths_of_dop(attention):
    adapter, inputs, images, _ = encoded(attention, (1, 2))
    replay, _ = replayed(attention, (1, 2))
    for depths in [{"attention_depth": 3}, {"mlp_depth": 1}, {"attention_depth": 2, "attention": "update_only"}]:
        pruner = tp.create_pruner("dop", base={"name": "random"}, **depths)
        pruned = Session(adapter).prune_inputs(inputs, pruner, Budget(keep_tokens=TOTAL), encoded=images)
        wanted = forward(adapter, pruned)
        torch.testing.assert_close(replay.under(pruner.operations(adapter.spec)), wanted, atol=1e-5, rtol=0)


def test_the_unpruned_logits_are_the_model_s_to_the_last_bit():
    adapter, inputs, _, _ = encoded("sdpa", (1, 2))
    with torch.no_grad():  # from the pixels on
        wanted = adapter.model(
            **inputs, position_ids=adapter.positions(inputs), use_cache=False, logits_to_keep=3
        ).logits
    replay, _ = replayed("sdpa", (1, 2), 3)
    assert torch.equal(replay.logits, wanted)
    for plan in PLANS:
        replay.under(plan)
    assert torch.equal(replay.logits, wanted)
    assert torch.equal(replay.under(EVERYTHING), wanted)


def test_one_plan_leaves_nothing_for_the_next():
    replay, _ = replayed("sdpa", (1, 2))
    first = [replay.under(plan) for plan in PLANS]
    assert all(torch.equal(replay.under(plan), one) for plan, one in zip(reversed(PLANS), reversed(first), strict=True))


@pytest.mark.parametrize("first", range(LAYERS))
def test_layers_before_the_first_partial_one_do_not_run(first):
    adapter, _, _, _ = encoded("sdpa", (1, 2))
    replay, _ = replayed("sdpa", (1, 2))
    ran, plan = [], depthwise(LAYERS, LAYERS, first)
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(adapter.model.get_decoder().layers)
    ]
    replay.under(plan)
    replay.under(EVERYTHING)
    for handle in handles:
        handle.remove()
    assert ran == list(range(first, LAYERS))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_on_the_model():
    adapter, _, _, whole = encoded("sdpa", (1, 2))
    before = hooks(adapter.model), Session(adapter).prefill(whole).output.logits
    replay, _ = replayed("sdpa", (1, 2))
    assert hooks(adapter.model) == before[0]
    replay.under(PLANS[0])
    assert hooks(adapter.model) == before[0]
    assert (_ACTIVE.get(), _FORWARD.get()) == (None, None)  # the latter holds hidden states
    assert torch.equal(Session(adapter).prefill(whole).output.logits, before[1])


def test_nothing_is_left_after_a_failure(monkeypatch):
    adapter, _, _, whole = encoded("sdpa", (1, 2))
    before, wanted = hooks(adapter.model), Session(adapter).prefill(whole).output.logits
    replay, _ = replayed("sdpa", (1, 2))

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(adapter.model.get_decoder().layers[3].mlp, "forward", fail)
        with pytest.raises(RuntimeError):
            replay.under(PLANS[0])
        with pytest.raises(RuntimeError):
            replayed("sdpa", (1, 2))
    assert hooks(adapter.model) == before
    assert torch.equal(Session(adapter).prefill(whole).output.logits, wanted)


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 99, "final_logit_softcapping": 2.0}


@pytest.mark.parametrize("capped", [False, True])
def test_logits_are_capped_if_the_model_caps_them(capped):
    """LLaVA does not, whatever the config of its LLM says; other multimodal models do."""
    model = tiny_llava("eager", decoder="gemma2", text=GEMMA)
    if capped:

        def cap(module, args, output):
            output.logits = torch.tanh(output.logits / 2) * 2

        model.register_forward_hook(cap)
    adapter, inputs, plan = adapter_for(model, tiny_processor()), ask(tiny_processor(), 1, 2), depthwise(4, 3, 1)
    images = Session(adapter).encode(inputs)
    whole = Session(adapter).prune_inputs(inputs, NoPruning(), encoded=images).inputs
    prompt = prompt_tokens(
        (),
        adapter.placeholders(whole["input_ids"]),
        images.layout,
        torch.ones_like(images.layout.free),
        operations=plan,
    )
    pruned = Session(adapter).prune_inputs(inputs, Planned(given=plan), Budget(keep_tokens=TOTAL), encoded=images)
    replay = Replay(model, fresh(whole), prompt, 1)
    assert (replay.logits.abs().max() <= 2) == capped
    torch.testing.assert_close(replay.under(plan), Session(adapter).prefill(pruned).output.logits, atol=1e-5, rtol=0)


def test_a_model_that_makes_its_logits_in_another_way_is_refused():
    adapter, _, _, _ = encoded("sdpa", (1, 2))

    def scale(module, args, output):
        output.logits = output.logits * 1.5

    handle = adapter.model.register_forward_hook(scale)
    try:
        with pytest.raises(ModelError, match="makes its logits in a way of its own"):
            replayed("sdpa", (1, 2))
    finally:
        handle.remove()
