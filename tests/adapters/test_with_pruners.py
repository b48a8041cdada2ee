"""The product of adapters and pruners: each pruner, through each adapter, gives what masking gives."""

import pytest
import torch
from masked_layers import masked_layers_logits
from tiny import BUILDERS, ask, tiny_clip

import tokenprune as tp
from tokenprune.adapters.known import ADAPTERS, adapter_for
from tokenprune.budget import Budget
from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.trace import stage_traces

OPTIONS = {"sparsevlm": {"recycle": False}}  # what is merged cannot be masked; the golden case has it end to end


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for part in tiny_clip():
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=ADAPTERS.names())
def name_of_adapter(request):
    return request.param


@pytest.fixture
def built(name_of_adapter):
    return BUILDERS[name_of_adapter]("sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PRUNERS.names())
def test_each_pruner_on_each_adapter(name_of_adapter, attention, clip, name):
    model, processor = BUILDERS[name_of_adapter](attention)
    pruner, inputs = create_pruner(name, **OPTIONS.get(name, {})), ask(processor, 1, 2)
    with tp.prune(model, processor, pruner, keep_tokens=8, text_tower=clip) as trace:
        out = model.generate(**inputs, max_new_tokens=9, return_dict_in_generate=True, output_logits=True)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    policies = [step.selector.positions for step in pruner.steps(adapter_for(model, processor).spec)]
    wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert trace.counts == [(25, 8), (50, 16)]


@pytest.mark.parametrize("name", PRUNERS.names())
def test_a_sample_alone_keeps_what_it_keeps_in_a_batch(built, clip, name):
    model, processor = built
    adapter = adapter_for(model, processor, text_tower=clip)
    batch = ask(processor, 1, 2)
    mask = batch["attention_mask"][1].bool()
    alone = {"input_ids": batch["input_ids"][1:, mask], "pixel_values": batch["pixel_values"][1:]}
    keeps = []
    for inputs in (batch, alone):
        pruned = adapter.prune_inputs(inputs, create_pruner(name), Budget(keep_tokens=8))
        adapter.prefill(pruned)
        keeps.append([stage.keep[-1] for stage in stage_traces(pruned, len(inputs["input_ids"]))])
    assert keeps[0] == keeps[1]
    assert len(keeps[0]) == len(create_pruner(name).steps(adapter.spec))


@pytest.mark.parametrize("name", PRUNERS.names())
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(built, clip, name):
    model, processor = built
    inputs = ask(processor, 1, 2)
    how = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **how)
    with tp.prune(model, processor, name, keep_ratio=1.0, text_tower=clip):
        pruned = model.generate(**inputs, **how)
    assert torch.equal(torch.stack(pruned.logits), torch.stack(plain.logits))


@pytest.mark.parametrize("name", sorted(set(PRUNERS.names()) - {"cdpruner", "compose", "divprune", "dop", "uniform"}))
def test_without_a_cache_it_is_the_same(built, name):
    model, processor = built
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, name, keep_tokens=8):
        plain = model.generate(**inputs, max_new_tokens=9)
        assert torch.equal(model.generate(**inputs, max_new_tokens=9, use_cache=False), plain)


@pytest.mark.parametrize("conditioning", sorted(set(CONDITIONINGS.names()) - {"open_clip_text"}))
def test_each_conditioning_has_its_signals(built, clip, conditioning):
    """``open_clip_text`` has its own in test_open_clip_tower."""
    model, processor = built
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, "cdpruner", keep_tokens=8, text_tower=clip, conditioning=conditioning) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(25, 8), (50, 16)]
