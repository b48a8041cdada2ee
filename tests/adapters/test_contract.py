"""What every adapter must do; see BUILDERS in ``tiny`` for how a new one joins."""

import pytest
import torch
from masked import masked_logits
from tiny import BUILDERS, Project, ask

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.adapters.known import ADAPTERS, adapter_for
from tokenprune.budget import Budget

STEPS = 9  # the first is the prefill's
POSITIONS = ("original", "repacked")
GENERATION = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(params=ADAPTERS.names())
def built(request, attention):
    if request.param not in BUILDERS:
        pytest.fail(f"add a tiny {request.param} to BUILDERS in tests/tiny.py")
    return BUILDERS[request.param](attention)


def generated(model, inputs):
    """Answer tokens (B, T) and their logits (B, T, vocabulary)."""
    out = model.generate(**inputs, **GENERATION)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(built, rows, positions):
    model, processor = built
    inputs = ask(processor, *rows)
    tokens, logits = generated(model, inputs)
    with torch.no_grad():
        forward = model(**inputs).logits
        with tp.prune(model, processor, Project(positions=positions), keep_ratio=1.0) as trace:
            assert torch.equal(model(**inputs).logits, forward)
            again = generated(model, inputs)
    assert torch.equal(again[0], tokens)
    assert torch.equal(again[1], logits)
    assert len(trace.calls) == 2  # so the images did go through the pruner


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (2, 1), (1, 0, 2)], ids=str)
def test_dropping_is_masking(built, rows, positions):
    model, processor = built
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, Project(positions=positions), keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)
    wanted = masked_logits(model, inputs, trace.keep, positions, tokens)
    torch.testing.assert_close(logits, wanted, atol=5e-5, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    assert (tokens != tokens[:, :1]).any()  # a model that repeats itself would hide errors in decoding


@pytest.mark.parametrize("positions", POSITIONS)
def test_dropping_is_masking_in_a_forward(built, positions):
    model, processor = built
    inputs = ask(processor, 1, 2)
    with torch.no_grad(), tp.prune(model, processor, Project(positions=positions), keep_tokens=7) as trace:
        logits = model(**inputs).logits[:, -1:]
    wanted = masked_logits(model, inputs, trace.keep, positions, torch.ones(2, 1, dtype=torch.long))
    torch.testing.assert_close(logits, wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_stateless_way_is_the_same(built, positions):
    model, processor = built
    adapter, pruner, inputs = adapter_for(model, processor), Project(positions=positions), ask(processor, 1, 2)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)
    pruned = adapter.prune_inputs(inputs, pruner, Budget(keep_tokens=7))
    assert torch.equal(pruned.selection.keep, trace.keep)
    assert pruned.layout.rows.tolist() == [0, 1, 1]
    assert torch.equal(generated(model, pruned.inputs)[1], logits)
    prefill = adapter.prefill(pruned.inputs)
    assert torch.equal(prefill.logits[:, 0], logits[:, 0])
    assert cache_of(prefill).get_seq_length() == pruned.inputs["input_ids"].shape[1]
    assert adapter.generate(pruned.inputs, max_new_tokens=STEPS) == [
        text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ]


def test_a_sample_alone_is_the_sample_in_a_batch(built):
    model, processor = built
    batch, pruner = ask(processor, 2, 1), Project()
    alone = {"input_ids": batch["input_ids"][1:, -int(batch["attention_mask"][1].sum()) :]}
    alone["pixel_values"] = batch["pixel_values"][2:]
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits = generated(model, batch)
        together = trace.keep
        single, single_logits = generated(model, alone)
    assert trace.keep.tolist() == together[2:].tolist()
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
    adapter = adapter_for(model, processor)
    ids = [adapter.visual_tokens(inputs, frozenset()).row_ids.tolist() for inputs in (batch, alone)]
    assert ids[1] == ids[0][2:]
    assert len(set(ids[0])) == 3


def test_encoding_once_is_enough(built):
    model, processor = built
    adapter, inputs = adapter_for(model, processor), ask(processor, 1, 2)
    encoded = adapter.encode(inputs)
    reused = adapter.prune_inputs(inputs, Project(), Budget(keep_tokens=5), encoded=encoded)
    direct = adapter.prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    assert reused.seconds["vision"] == 0 < direct.seconds["vision"]
    assert torch.equal(adapter.prefill(reused.inputs).logits, adapter.prefill(direct.inputs).logits)


def test_the_spec_counts_what_runs(built):
    model, processor = built
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    ran, handles = [], []
    for module in model.modules():
        if type(module).__name__.endswith(("EncoderLayer", "DecoderLayer")):
            handles.append(module.register_forward_hook(lambda m, args, out: ran.append(type(m).__name__)))
    tokens = adapter.visual_tokens(inputs, frozenset())
    assert len(ran) == adapter.spec.vision.layers
    adapter.prefill(adapter.prune_inputs(inputs, None).inputs)
    assert len(ran) == 2 * adapter.spec.vision.layers + adapter.spec.llm.layers
    for handle in handles:
        handle.remove()
    assert tokens.num_tokens == adapter.spec.visual_tokens
    assert tokens.features.shape[2] == adapter.spec.llm.width == adapter.spec.projector[-1]
    assert adapter.spec.vocabulary == model.lm_head.weight.shape[0]


def test_it_says_what_it_serves():
    for name in ADAPTERS.names():
        adapter = ADAPTERS.get(name)
        assert adapter.model_types
        assert "/" in adapter.example
        assert adapter.offers
