"""The product of adapters and pruners: each pruner, through each adapter, gives what masking gives."""

import pytest
import torch
from masked import masked_logits
from tiny import BUILDERS, ask, tiny_clip

import tokenprune as tp
from tokenprune.adapters.base import ADAPTERS, adapter_for
from tokenprune.budget import Budget
from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.types import PRE_LLM


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for part in tiny_clip():
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=ADAPTERS.names())
def built(request):
    return BUILDERS[request.param]("sdpa")


@pytest.mark.parametrize("name", PRUNERS.names())
def test_each_pruner_on_each_adapter(built, clip, name):
    model, processor = built
    pruner = create_pruner(name)
    if pruner.stages(adapter_for(model, processor).spec) != (PRE_LLM,):
        pytest.skip("prunes inside the LLM")
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, pruner, keep_tokens=8, text_tower=clip) as trace:
        out = model.generate(**inputs, max_new_tokens=9, return_dict_in_generate=True, output_logits=True)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    wanted = masked_logits(model, inputs, trace.keep, pruner.positions, tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", PRUNERS.names())
def test_a_sample_alone_keeps_what_it_keeps_in_a_batch(built, clip, name):
    model, processor = built
    adapter = adapter_for(model, processor, text_tower=clip)
    batch = ask(processor, 1, 2)
    alone = {"input_ids": batch["input_ids"][1:], "pixel_values": batch["pixel_values"][1:]}
    keeps = [
        adapter.prune_inputs(inputs, create_pruner(name), Budget(keep_tokens=8)).selection.keep.tolist()
        for inputs in (batch, alone)
    ]
    assert keeps[0][1:] == keeps[1]


@pytest.mark.parametrize("conditioning", sorted(set(CONDITIONINGS.names()) - {"open_clip_text"}))
def test_each_conditioning_has_its_signals(built, clip, conditioning):
    """``open_clip_text`` has its own in test_open_clip_tower."""
    model, processor = built
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, "cdpruner", keep_tokens=8, text_tower=clip, conditioning=conditioning) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(25, 8), (50, 16)]
