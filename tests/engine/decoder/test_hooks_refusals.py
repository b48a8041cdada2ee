"""What pruning inside the LLM cannot serve, and says so."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.families.llava import ask, tiny_llava, tiny_processor
from tokenprune.testing.pruners import Within


def test_a_cache_that_holds_something_else_is_refused(llava):
    model, processor = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    pruned, cache = Session(adapter).prune_inputs(inputs, Within(), Budget(keep_tokens=7)), DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), **{CACHE: cache})
        inside = InsideLLM(model, pruned.inside)
        with pytest.raises(ModelError, match="no cache but one that was filled in this block"), inside:
            model(**pruned.inputs, **{CACHE: cache})


@pytest.mark.parametrize("cut", [(0, 2), (1, 3), (2, 4)])
def test_a_cache_whose_layers_were_cut_apart_is_refused(llava, cut):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, Within(), keep_tokens=7):
        first = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 6), value=1)
        for layer in cache_of(first).layers[slice(*cut)]:
            layer.crop(-3)
        with pytest.raises(ModelError, match="does not hold the prompt any more"):
            model.generate(first.sequences, attention_mask=mask, **{CACHE: cache_of(first)}, max_new_tokens=1)


@pytest.mark.parametrize("part", ["norm", "rotary_emb", "self_attn"])
def test_decoders_of_another_build(part):
    model, processor = tiny_llava(), tiny_processor()
    delattr(model.get_decoder().layers[1] if part == "self_attn" else model.get_decoder(), part)
    with pytest.raises(ModelError, match=f"has no {part}"):
        session_for(model, processor).prune_inputs(ask(processor, 1), Within(), Budget(keep_tokens=7))


def test_layers_of_another_type():
    model, processor = tiny_llava(), tiny_processor()
    model.get_decoder().config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(ModelError, match="layers of type linear_attention"):
        session_for(model, processor).prune_inputs(ask(processor, 1), Within(), Budget(keep_tokens=7))


class Hidden(nn.Module):
    """Attention that does not look up its kernel by its own config."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_attention_that_cannot_be_read():
    model, processor = tiny_llava(), tiny_processor()
    layer = model.get_decoder().layers[1]
    layer.self_attn = Hidden(layer.self_attn)
    with pytest.raises(ModelError, match="cannot be read"), tp.prune(model, processor, Within(), keep_tokens=7):
        model.generate(**ask(processor, 1), max_new_tokens=1)
