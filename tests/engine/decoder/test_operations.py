"""Operation pruning: any plan is what the model gives if the skipped work is computed and thrown away."""

import functools

import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.errors import ModelError, SelectionError
from tokenprune.core.plan import Operation, Operations
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.families.qwen_vl import FAMILIES
from tokenprune.testing.masked_operations import masked_operations_logits
from tokenprune.testing.pruners import LAYERS, Planned, depthwise, random_plan

STEPS = 9
QWEN = FAMILIES["qwen2_5_vl"]


def generated(model, inputs, steps=STEPS, **how):
    torch.manual_seed(0)  # sampled, since some of these models repeat themselves, which would hide errors
    how = {"do_sample": True, "temperature": 9.0, "max_new_tokens": steps, **how}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **how)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), cache_of(out)


def groups_of(trace, operations, images_per_row, total=25):
    """The group of each visual token of each row, -1 for what left before the LLM: by the order of the picks."""
    order, rows, image = trace.last.selection.order, [], 0
    for images in images_per_row:
        group = []
        for _ in range(images):
            of = [-1] * total
            ranks = [g for g, size in enumerate(operations.sizes(order.shape[1])) for _ in range(size)]
            for rank, token in zip(ranks, order[image].tolist(), strict=True):
                of[token] = rank
            group += of
            image += 1
        rows.append(group)
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [(1,), (1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("plan", [random_plan(s, 1 + s % 3) for s in range(6)], ids=lambda p: f"{len(p.shares)} groups")
def test_random_plans(attention, rows, plan):
    model, processor = shared_llava(attention)
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, Planned(given=plan), keep_tokens=11) as trace:
        tokens, logits, cache = generated(model, inputs)
    groups = groups_of(trace, plan, rows)
    wanted = masked_operations_logits(model, inputs, plan.active, groups, tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    if len(rows) == 1:  # each layer caches exactly what its plan computes
        text = inputs["input_ids"].shape[1] - 25 + STEPS - 1
        sizes = torch.tensor(plan.sizes(11))
        held = (plan.active[:, Operation.ATTENTION_SOURCE] * sizes).sum(1) + text
        assert [layer.keys.shape[2] for layer in cache.layers] == held.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("depths", [(4, 3, 3), (3, 2, 2), (3, 2, 0), (4, 2, 1), (1, 0, 0), (3, 3, 3)], ids=str)
def test_depths(attention, depths):
    model, processor = shared_llava(attention)
    inputs, plan = ask(processor, 1, 2), depthwise(*depths)
    with tp.prune(model, processor, Planned(given=plan), keep_tokens=11) as trace:
        tokens, logits, _ = generated(model, inputs)
    wanted = masked_operations_logits(model, inputs, plan.active, groups_of(trace, plan, (1, 2)), tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@functools.cache
def built(decoder):
    options = {"gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16}, "qwen3": {"head_dim": 16}}
    text = {**options.get(decoder, {}), "sliding_window": 99} if decoder != "llama" else {}
    return tiny_llava(decoder=decoder, text=text), tiny_processor()


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("seed", [0, 1])
def test_other_decoders(decoder, seed):
    model, processor = built(decoder)
    inputs, plan = ask(processor, 1, 2), random_plan(seed)
    with tp.prune(model, processor, Planned(given=plan), keep_tokens=11) as trace:
        tokens, logits, _ = generated(model, inputs)
    wanted = masked_operations_logits(model, inputs, plan.active, groups_of(trace, plan, (1, 2)), tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_positions_with_three_axes(attention, seed):
    model, processor = QWEN.build(attention)
    inputs, plan = QWEN.ask(processor, 1, 2), random_plan(seed)
    visual = QWEN.placeholder(model, inputs["input_ids"])
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    prompt = PromptTokens(visual, number, [()] * 2, lambda: torch.arange(2), torch.zeros_like(number))
    with InsideLLM(model, InsidePlan((), prompt, plan.active)):
        tokens, logits, _ = generated(model, inputs)
    groups = [[0] * int(row.sum()) for row in visual]
    wanted = masked_operations_logits(model, inputs, plan.active, groups, tokens, family=QWEN)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "how", [{"use_cache": False}, {"cache_implementation": "static"}], ids=lambda how: next(iter(how))
)
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_ways_to_generate(how, seed):
    model, processor = shared_llava("sdpa")
    inputs, plan = ask(processor, 1, 2), random_plan(seed)
    with tp.prune(model, processor, Planned(given=plan), keep_tokens=11):
        tokens, logits, _ = generated(model, inputs)
        again, others, _ = generated(model, inputs, **how)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(others, logits, atol=1e-4, rtol=0)


PLANS = [
    *(random_plan(seed) for seed in range(6)),
    depthwise(3, 3, 2),
    depthwise(4, 2, 2),
    depthwise(2, 3, 1),
    depthwise(1, 1, 4),
    depthwise(4, 4, 2),
]


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_static_cache_without_padding(family, attention, plan):
    """The kernel is given no mask then, but keys that are not there yet."""
    model, processor = shared_llava(attention) if family == "llava" else QWEN.build(attention)
    inputs = ask(processor, 1) if family == "llava" else QWEN.ask(processor, 1)
    with tp.prune(model, processor, Planned(given=plan), keep_tokens=11):
        tokens, logits, _ = generated(model, inputs)
        again, others, _ = generated(model, inputs, cache_implementation="static")
    assert torch.equal(again, tokens)
    torch.testing.assert_close(others, logits, atol=1e-4, rtol=0)


def test_with_a_pruner_inside():
    """FastV at layer 1 and then two segments: equal to masking, layer by layer, what FastV dropped."""
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 2)
    pruner = tp.create_pruner("dop", base={"name": "fastv", "layer": 1}, attention_depth=3, mlp_depth=2)
    with tp.prune(model, processor, pruner, keep_tokens=9) as trace:
        tokens, logits, _ = generated(model, inputs)
    plan = torch.zeros(LAYERS, 3, 2, dtype=torch.bool)
    plan[:3, 0, 0] = plan[:2, 1, 0] = plan[:2, 2, 0] = True
    plan[:1, :, 1] = True
    groups = [
        [0 if n in kept else 1 for n in range(25 * images)]
        for kept, images in zip(trace.stages[0].keep, (1, 2), strict=True)
    ]
    wanted = masked_operations_logits(model, inputs, plan, groups, tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def test_what_is_skipped_is_not_computed():
    """Tokens that go through each projection and MLP, counted where they go in."""
    model, processor = shared_llava("sdpa")
    inputs, plan = ask(processor, 1), depthwise(3, 2, 1)
    text, seen, handles = inputs["input_ids"].shape[1] - 25, [], []
    for layer in model.get_decoder().layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.o_proj, layer.mlp.up_proj):
            handles.append(module.register_forward_hook(lambda m, args, out: seen.append(out.shape[1])))
    with torch.no_grad(), tp.prune(model, processor, Planned(given=plan), keep_tokens=11):
        model(**inputs)
    for handle in handles:
        handle.remove()
    everything, nothing = text + 11, text
    by_layer = [seen[i : i + 4] for i in range(0, 16, 4)]
    assert by_layer[0] == [everything] * 4
    assert by_layer[1] == [everything, everything, everything, nothing]
    assert by_layer[3] == [nothing] * 4
    assert by_layer[2][1] == everything
    assert by_layer[2][3] == nothing


def test_flash_attention_cannot_split():
    model, processor = tiny_llava(), tiny_processor()
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    pruner = Planned(given=depthwise(3, 2, 1))
    with pytest.raises(ModelError, match="flash attention cannot"), tp.prune(model, processor, pruner, keep_tokens=5):
        model.generate(**ask(processor, 1), max_new_tokens=1)


def test_plans_that_cannot_be():
    active = torch.ones(4, 3, 1, dtype=torch.bool)
    active[0, 0] = False
    with pytest.raises(SelectionError, match="layer 0"):
        Operations(active)
    with pytest.raises(SelectionError, match="add up to 1"):
        Operations(torch.ones(4, 3, 2, dtype=torch.bool), (0.5, 0.4))
    with pytest.raises(SelectionError, match=r"\(layers, 3, 1\)"):
        Operations(torch.ones(4, 2, 1, dtype=torch.bool))


def test_nothing_is_left_on_the_model():
    model, processor = shared_llava("sdpa")
    inputs, count = (
        ask(processor, 1),
        lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    )
    before, plain = count(), generated(model, inputs, 3)[1]
    with tp.prune(model, processor, Planned(given=random_plan(0)), keep_tokens=9):
        generated(model, inputs, 3)
    assert count() == before
    assert torch.equal(generated(model, inputs, 3)[1], plain)
