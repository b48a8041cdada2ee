"""The product of adapters and pruners: each pruner, through each adapter, gives what masking gives."""

import pytest
import torch
from checks import GENERATION, STEPS
from families import families
from masked_layers import masked_layers_logits
from tiny import tiny_clip
from tiny_siglip import save_siglip

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE
from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.stages import PRE_LLM
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.engine.trace import stage_traces
from tokenprune.pruners.base import PRUNERS, create_pruner

OPTIONS = {"sparsevlm": {"recycle": False}}  # what is merged cannot be masked; the golden case has it end to end
FAMILIES = families()
MERGING = {"pooling", "resize"}  # likewise; their own tests say what enters the LLM
BEFORE = {"cdpruner", "compose", "divprune", "dop", "uniform", *MERGING}  # these prune before the LLM


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Text towers, by what the families call them."""
    folder = tmp_path_factory.mktemp("clip")
    for part in tiny_clip():
        part.save_pretrained(folder)
    return {"clip": str(folder), "siglip": save_siglip(tmp_path_factory.mktemp("siglip"))}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def refuses(family, model, processor, name, pruner):
    """Whether a pruner cannot be on a family: it needs a signal that is not on offer, or the family says so."""
    adapter = adapter_for(model, processor)
    before = [step for step in pruner.steps(adapter.spec) if step.stage == PRE_LLM]
    missing = [signal for step in before for signal in step.selector.requires - adapter.offers]
    reason = "cannot give the signals" if missing else family.refused.get(name)
    if reason is None:
        return False
    with pytest.raises(ModelError, match=reason), tp.prune(model, processor, pruner, keep_tokens=8):
        model.generate(**family.ask(processor, 1), max_new_tokens=1)
    return True


def in_each_layer(family, model, inputs, stages):
    """Tokens of the longest row in each layer: text, and the visual tokens that the stages up to it leave."""
    alive = torch.tensor([sum(row) for row in family.items(model, inputs)])
    text, longest = inputs["attention_mask"].sum(1) - alive, []
    for layer in range(model.config.get_text_config().num_hidden_layers):
        for stage in stages:
            if (stage.stage.layer or 0) == layer:
                alive = torch.tensor(stage.counts)
        longest.append(int((text + alive).max()))
    return longest


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PRUNERS.names())
def test_each_pruner_on_each_adapter(family, attention, towers, name):
    model, processor = family.build(attention)
    pruner, inputs = create_pruner(name, **OPTIONS.get(name, {})), family.ask(processor, 1, 2)
    if refuses(family, model, processor, name, pruner):
        return
    with tp.prune(model, processor, pruner, keep_tokens=8, text_tower=towers[family.tower]) as trace:
        out = model.generate(**inputs, **GENERATION)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    policies = [step.selector.positions for step in pruner.steps(adapter_for(model, processor).spec)]
    if name not in MERGING:
        wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens, family=family)
        torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert trace.counts == family.counts(model, inputs, 8)
    cached = [layer.keys.shape[2] for layer in getattr(out, CACHE).layers]
    assert cached == [length + STEPS - 1 for length in in_each_layer(family, model, inputs, trace.stages)]


@pytest.mark.parametrize("name", PRUNERS.names())
def test_a_sample_alone_keeps_what_it_keeps_in_a_batch(family, towers, name):
    model, processor = family.build("sdpa")
    adapter, pruner = adapter_for(model, processor, text_tower=towers[family.tower]), create_pruner(name)
    if refuses(family, model, processor, name, pruner):
        return
    keeps = []
    for inputs in (family.ask(processor, 1, 2), family.ask(processor, 1, 2, only=1)):
        pruned = Session(adapter).prune_inputs(inputs, pruner, Budget(keep_tokens=8))
        ran = Session(adapter).prefill(pruned)
        keeps.append([stage.keep[-1] for stage in stage_traces(pruned, ran.stages, len(inputs["input_ids"]))])
    assert keeps[0] == keeps[1]
    assert len(keeps[0]) == len(pruner.steps(adapter.spec))


@pytest.mark.parametrize("name", PRUNERS.names())
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(family, towers, name):
    model, processor = family.build("sdpa")
    inputs, pruner = family.ask(processor, 1, 2), create_pruner(name)
    if refuses(family, model, processor, name, pruner):
        return
    how = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **how)
    with tp.prune(model, processor, pruner, keep_ratio=1.0, text_tower=towers[family.tower]):
        pruned = model.generate(**inputs, **how)
    assert torch.equal(torch.stack(pruned.logits), torch.stack(plain.logits))


@pytest.mark.parametrize("name", sorted(set(PRUNERS.names()) - BEFORE))
def test_without_a_cache_it_is_the_same(family, name):
    model, processor = family.build("sdpa")
    inputs, pruner = family.ask(processor, 1, 2), create_pruner(name)
    if refuses(family, model, processor, name, pruner):
        return
    with tp.prune(model, processor, pruner, keep_tokens=8):
        plain = model.generate(**inputs, max_new_tokens=9)
        assert torch.equal(model.generate(**inputs, max_new_tokens=9, use_cache=False), plain)


@pytest.mark.parametrize("conditioning", sorted(set(CONDITIONINGS.names()) - {"open_clip_text"}))
def test_each_conditioning_has_its_signals(family, towers, conditioning):
    """``open_clip_text`` has its own in test_open_clip_tower and test_siglip_tower."""
    model, processor = family.build("sdpa")
    inputs, pruner = family.ask(processor, 1, 2), create_pruner("cdpruner", conditioning=conditioning)
    if refuses(family, model, processor, "cdpruner", pruner):
        return
    with tp.prune(model, processor, pruner, keep_tokens=8, text_tower=towers[family.tower]) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == family.counts(model, inputs, 8)
