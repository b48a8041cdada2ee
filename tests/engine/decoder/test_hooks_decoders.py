"""Decoders of several builds: sliding windows, norms of queries and keys, rotations that differ between layers."""

import functools

import pytest
import torch

import tokenprune as tp
from tokenprune.testing.families.llava import ask, tiny_llava, tiny_processor
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import Within

SLIDING = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
DECODERS = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 20},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20, "layer_types": SLIDING},
}


@functools.cache
def built(decoder, attention):
    return tiny_llava(attention, decoder=decoder, text=DECODERS[decoder]), tiny_processor()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "pruner",
    [Within(), Within(layers=(1, 3), own=True), Within(layers=(0, 2), after="attention")],
    ids=["one", "two", "after"],
)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_dropping_is_masking_from_that_layer_on(decoder, attention, rows, pruner):
    model, processor = built(decoder, attention)
    inputs = ask(processor, *rows)
    torch.manual_seed(0)  # sampled, since some of these models repeat themselves, which would hide errors
    how = {
        "do_sample": True,
        "temperature": 9.0,
        "max_new_tokens": 17,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, **how)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * len(pruner.layers), tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert (tokens != tokens[:, :1]).any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_closed_gaps(decoder):
    """Of a decoder with windows they are not tested: what a window counts then is not what the masked model counts."""
    if DECODERS[decoder].get("sliding_window"):
        model = tiny_llava(decoder=decoder, text={**DECODERS[decoder], "sliding_window": 99})
    else:
        model = built(decoder, "sdpa")[0]
    processor = tiny_processor()
    inputs, pruner = ask(processor, 1, 2), Within(layers=(1, 3), positions="repacked")
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, max_new_tokens=9, return_dict_in_generate=True, output_logits=True)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["repacked"] * 2, tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
