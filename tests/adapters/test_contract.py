"""What every adapter must do; see ``families`` for how a new one joins."""

import copy
from importlib.util import find_spec

import pytest
import torch
from checks import STEPS, check_identity, check_masking, check_operations, generated, picture
from families import families
from masked_layers import masked_layers_logits
from tiny import QUESTIONS, Project
from tiny_inside import Within
from tiny_plans import depthwise, random_plan

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.engine.trace import stage_traces

FAMILIES = families()
SCOPES = [(name, scope) for name, family in FAMILIES.items() for scope in family.scopes]
POLICIES = [(name, policy) for name, family in FAMILIES.items() for policy in family.policies]
BEFORE = [(name, scope, policy) for name, scope in SCOPES for policy in FAMILIES[name].policies]


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_it_has_a_tiny_model(adapter):
    assert find_spec(f"tiny_{adapter}"), f"add tests/tiny_{adapter}.py with FAMILIES"


@pytest.mark.parametrize(("name", "scope", "positions"), BEFORE)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(name, scope, attention, rows, positions):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    check_identity(model, processor, family.ask(processor, *rows), Project(positions=positions), scope)


@pytest.mark.parametrize(("name", "scope", "positions"), BEFORE)
@pytest.mark.parametrize("rows", [(1,), (2, 1), (1, 0, 2)], ids=str)
def test_dropping_is_masking(name, scope, attention, rows, positions):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, *rows)
    trace = check_masking(family, model, processor, inputs, Project(positions=positions), scope, keep_tokens=7)
    assert trace.counts == family.counts(model, inputs, 7)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.chat])
def test_dropping_from_a_chat_is_masking(name, attention):
    """Text, image, text, image, text, as the family's template puts them, beside a row of one image."""
    family, image = FAMILIES[name], {"type": "image"}
    model, processor = family.build(attention)
    left, where, one, two = ({"type": "text", "text": text} for text in ("on the left", "where", *QUESTIONS[:2]))
    texts = [
        processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        for parts in ([left, image, where, image, one], [image, two])
    ]
    images = [[picture(0, 40, 80), picture(1, 80, 40)], [picture(2, 80, 80)]]
    inputs = dict(processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt"))
    trace = check_masking(family, model, processor, inputs, Project(), keep_tokens=7)
    assert [after for _, after in trace.counts] == [14, 7]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layers", [(2,), (1, 3)], ids=["one stage", "two stages"])
@pytest.mark.parametrize("rows", [(1,), (1, 0, 2)], ids=str)
def test_dropping_inside_is_masking_from_that_layer_on(name, attention, rows, layers):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    inputs, positions = family.ask(processor, *rows), family.inside[-1] if len(layers) > 1 else "original"
    trace = check_masking(family, model, processor, inputs, Within(layers=layers, positions=positions), keep_tokens=7)
    assert trace.counts == family.counts(model, inputs, 7)


@pytest.mark.parametrize("plan", [depthwise(4, 3, 2), depthwise(3, 2, 0), random_plan(1)], ids=["dop", "early", "any"])
def test_skipping_operations_is_throwing_them_away(family, attention, plan):
    model, processor = family.build(attention)
    check_operations(family, model, processor, family.ask(processor, 2, 1), plan, keep_tokens=7)


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
    pruned = Session(adapter).prune_inputs(inputs, pruner, Budget(keep_tokens=7))
    assert stage_traces(pruned, (), 2)[0].keep == trace.stages[0].keep
    assert pruned.layout.item_rows == (0, 1, 1)
    assert torch.equal(generated(model, pruned.inputs)[1], logits)
    prefill = Session(adapter).prefill(pruned.inputs).output
    assert torch.equal(prefill.logits[:, 0], logits[:, 0])
    assert cache_of(prefill).get_seq_length() == pruned.inputs["input_ids"].shape[1]
    assert Session(adapter).generate(pruned.inputs, max_new_tokens=STEPS).output == [
        text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ]


@pytest.mark.parametrize(("name", "scope"), SCOPES)
def test_a_sample_alone_is_the_sample_in_a_batch(name, scope, attention):
    family = FAMILIES[name]
    model, processor = family.build(attention)
    batch, alone = family.ask(processor, 2, 1), family.ask(processor, 2, 1, only=1)
    with tp.prune(model, processor, Project(), scope=scope, keep_tokens=7) as trace:
        tokens, logits = generated(model, batch)
        together = trace.stages[0].keep
        single, single_logits = generated(model, alone)
    assert trace.stages[0].keep == together[1:]
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
    adapter = adapter_for(model, processor, scope=scope)
    layouts = [Session(adapter).encode(inputs).layout for inputs in (batch, alone)]
    ids = [layout.ids.tolist() for layout in layouts]
    assert ids[1] == layouts[0].ids[layouts[0].rows == 1].tolist()
    assert len(set(ids[0])) == len(ids[0]) >= 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
def test_samples_are_prepared(family):
    model, processor = family.build("sdpa")
    sizes = {"is there a star ?": (80, 80), "where ?": (80, 24)}
    samples = [Sample(text, picture(1, *size), text, "yes") for text, size in sizes.items()]
    for scope in type(adapter_for(model, processor)).scopes:
        adapter = adapter_for(model, processor, scope=scope)
        prepared = Session(adapter).prepare(samples)
        assert Session(adapter).questions(prepared.inputs) == prepared.questions == list(sizes)
        assert prepared.inputs["attention_mask"][:, -1].tolist() == [1, 1]
        assert prepared.inputs["attention_mask"].min() == 0  # of different lengths, padded on the left
        pruned = Session(adapter).prune_inputs(prepared.inputs, Project(), Budget(keep_tokens=7))
        assert pruned.entered == [7, 7]
        assert len(Session(adapter).generate(pruned, max_new_tokens=2).output) == 2


def test_a_processor_of_another_model_is_refused(family):
    model, processor = family.build("sdpa")
    ours = model.config.image_token_id
    other = copy.deepcopy(processor)
    other.image_token_id = other.tokenizer.image_token_id = 77
    with pytest.raises(ModelError, match=f"not this model's processor: images are token 77 there, token {ours} here"):
        adapter_for(model, other)


def test_encoding_once_is_enough(family, attention):
    model, processor = family.build(attention)
    adapter, inputs = adapter_for(model, processor), family.ask(processor, 1, 2)
    encoded = Session(adapter).encode(inputs)
    reused = Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=5), encoded=encoded)
    direct = Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    assert reused.seconds["vision"] == 0 < direct.seconds["vision"]
    assert torch.equal(
        Session(adapter).prefill(reused.inputs).output.logits, Session(adapter).prefill(direct.inputs).output.logits
    )


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
    Session(adapter).prefill(Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=5)))
    with torch.no_grad(), tp.prune(model, processor, Project(), keep_tokens=5):
        model(**family.ask(processor, 1))
        model.generate(**inputs, max_new_tokens=2)
        with tp.prune(model, processor, Within(), keep_tokens=5):
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
    encoded = Session(adapter).encode(inputs)
    assert len(ran) == adapter.spec.vision.layers
    Session(adapter).prefill(Session(adapter).prune_inputs(inputs, None).inputs)
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
