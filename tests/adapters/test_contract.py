"""What every adapter must do; see ``families`` for how a new one joins."""

from importlib.util import find_spec

import pytest
import torch
from families import families
from masked_layers import masked_layers_logits
from tiny import Project

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.adapters.known import ADAPTERS, adapter_for
from tokenprune.budget import Budget
from tokenprune.trace import stage_traces

STEPS = 9  # the first is the prefill's
GENERATION = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
FAMILIES = families()
POLICIES = [(name, policy) for name, family in FAMILIES.items() for policy in family.policies]


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def generated(model, inputs):
    """Answer tokens (B, T) and their logits (B, T, vocabulary)."""
    out = model.generate(**inputs, **GENERATION)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_it_has_a_tiny_model(adapter):
    assert find_spec(f"tiny_{adapter}"), f"add tests/tiny_{adapter}.py with FAMILIES"


@pytest.mark.parametrize(("name", "positions"), POLICIES)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(name, attention, rows, positions):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, *rows)
    tokens, logits = generated(model, inputs)
    with torch.no_grad():
        forward = model(**inputs).logits
        with tp.prune(model, processor, Project(positions=positions), keep_ratio=1.0) as trace:
            assert torch.equal(model(**inputs).logits, forward)
            again = generated(model, inputs)
    assert torch.equal(again[0], tokens)
    assert torch.equal(again[1], logits)
    assert len(trace.calls) == 2  # so the images did go through the pruner


@pytest.mark.parametrize(("name", "positions"), POLICIES)
@pytest.mark.parametrize("rows", [(1,), (2, 1), (1, 0, 2)], ids=str)
def test_dropping_is_masking(name, attention, rows, positions):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, *rows)
    with tp.prune(model, processor, Project(positions=positions), keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)
    assert trace.counts == family.counts(model, inputs, 7)
    wanted = masked_layers_logits(model, inputs, trace.stages, [positions], tokens, family=family)
    torch.testing.assert_close(logits, wanted, atol=5e-5, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    assert (tokens != tokens[:, :1]).any()  # a model that repeats itself would hide errors in decoding


@pytest.mark.parametrize(("name", "positions"), POLICIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_dropping_is_masking_in_a_forward(name, attention, positions, side):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, 1, 2, side=side)
    with torch.no_grad(), tp.prune(model, processor, Project(positions=positions), keep_tokens=7) as trace:
        logits = model(**inputs).logits
    left = [sum(inputs["attention_mask"][row]) - before + after for row, (before, after) in enumerate(trace.counts)]
    last = torch.tensor([logits.shape[1] - 1 if side == "left" else n - 1 for n in left])
    answers = torch.ones(2, 1, dtype=torch.long)
    wanted = masked_layers_logits(model, inputs, trace.stages, [positions], answers, family=family)
    torch.testing.assert_close(logits[torch.arange(2), last][:, None], wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("name", "positions"), POLICIES)
def test_the_stateless_way_is_the_same(name, attention, positions):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    adapter, pruner, inputs = adapter_for(model, processor), Project(positions=positions), family.ask(processor, 1, 2)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)
    pruned = adapter.prune_inputs(inputs, pruner, Budget(keep_tokens=7))
    assert stage_traces(pruned, 2)[0].keep == trace.stages[0].keep
    assert pruned.layout.item_rows == (0, 1, 1)
    assert torch.equal(generated(model, pruned.inputs)[1], logits)
    prefill = adapter.prefill(pruned.inputs)
    assert torch.equal(prefill.logits[:, 0], logits[:, 0])
    assert cache_of(prefill).get_seq_length() == pruned.inputs["input_ids"].shape[1]
    assert adapter.generate(pruned.inputs, max_new_tokens=STEPS) == [
        text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ]


def test_a_sample_alone_is_the_sample_in_a_batch(family, attention):
    model, processor = family.build(attention)
    batch, alone = family.ask(processor, 2, 1), family.ask(processor, 2, 1, only=1)
    with tp.prune(model, processor, Project(), keep_tokens=7) as trace:
        tokens, logits = generated(model, batch)
        together = trace.stages[0].keep
        single, single_logits = generated(model, alone)
    assert trace.stages[0].keep == together[1:]
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
    adapter = adapter_for(model, processor)
    layouts = [adapter.encode(inputs).layout for inputs in (batch, alone)]
    ids = [layout.ids.tolist() for layout in layouts]
    assert ids[1] == layouts[0].ids[layouts[0].rows == 1].tolist()
    assert len(set(ids[0])) == len(ids[0]) >= 3


def test_encoding_once_is_enough(family, attention):
    model, processor = family.build(attention)
    adapter, inputs = adapter_for(model, processor), family.ask(processor, 1, 2)
    encoded = adapter.encode(inputs)
    reused = adapter.prune_inputs(inputs, Project(), Budget(keep_tokens=5), encoded=encoded)
    direct = adapter.prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    assert reused.seconds["vision"] == 0 < direct.seconds["vision"]
    assert torch.equal(adapter.prefill(reused.inputs).logits, adapter.prefill(direct.inputs).logits)


def test_nothing_is_left_on_the_model(family):
    """Hooks, attributes and configs of each module are what they were."""
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, 2)
    model.generate(**inputs, max_new_tokens=2)

    def state():
        modules = dict(model.named_modules())
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules.values()]
        return hooks, [set(vars(module)) for module in modules.values()], plain(model.base_model), str(model.config)

    before = state()
    adapter = adapter_for(model, processor)
    adapter.prefill(adapter.prune_inputs(inputs, Project(), Budget(keep_tokens=5)))
    with torch.no_grad(), tp.prune(model, processor, Project(), keep_tokens=5):
        model(**family.ask(processor, 1))
        model.generate(**inputs, max_new_tokens=2)
    assert state() == before


def plain(module):
    """Attributes of a module besides parts and hooks, such as Qwen's ``rope_deltas``."""
    return {name: repr(value) for name, value in vars(module).items() if not name.startswith("_")}


def test_the_spec_counts_what_runs(family):
    model, processor = family.build("sdpa")
    adapter, inputs = adapter_for(model, processor), family.ask(processor, 1, **family.nominal)
    ran, handles = [], []
    layers = ("EncoderLayer", "DecoderLayer", "VisionBlock", "VisionLayer", "AttentionLayer")
    for module in model.modules():
        if type(module).__name__.endswith(layers):
            handles.append(module.register_forward_hook(lambda m, args, out: ran.append(type(m).__name__)))
    encoded = adapter.encode(inputs)
    assert len(ran) == adapter.spec.vision.layers
    adapter.prefill(adapter.prune_inputs(inputs, None).inputs)
    assert len(ran) == 2 * adapter.spec.vision.layers + adapter.spec.llm.layers
    for handle in handles:
        handle.remove()
    assert encoded.layout.free_tokens() == [adapter.spec.visual_tokens]
    assert encoded.features.shape[1] == adapter.spec.llm.width == adapter.spec.projector[-1]
    assert adapter.spec.vocabulary == model.lm_head.weight.shape[0]


def test_it_says_what_it_serves():
    for name in ADAPTERS.names():
        adapter = ADAPTERS.get(name)
        assert adapter.model_types
        assert "/" in adapter.example
        assert adapter.offers
