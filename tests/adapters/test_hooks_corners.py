"""Corners of pruning inside the LLM: padding between turns, caches and masks of one's own, clocks, layers by hand."""

import dataclasses

import pytest
import torch
from masked_layers import masked_layers_logits
from tiny import ask, shared_llava
from tiny_inside import Within
from transformers import DynamicCache

import tokenprune as tp
from tokenprune.adapters.base import adapter_for
from tokenprune.adapters.hooks import InsideLLM
from tokenprune.adapters.prefill import PromptTokens
from tokenprune.budget import Budget
from tokenprune.errors import ModelError
from tokenprune.types import Step

DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}


def one_row(inputs, row, images, stages):
    """A row of a batch without its padding, its own pictures, and its stages."""
    mask, before = inputs["attention_mask"][row].bool(), sum(images[:row])
    alone = {"input_ids": inputs["input_ids"][row : row + 1, mask]}
    alone["pixel_values"] = inputs["pixel_values"][before : before + images[row]]
    return alone, [dataclasses.replace(s, keep=[s.keep[row]], counts=[s.counts[row]]) for s in stages]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "pruner", [Within(), Within(layers=(1, 3), positions="repacked")], ids=["original", "repacked"]
)
def test_a_padded_second_turn(attention, pruner):
    """Questions of different lengths are padded between what the cache holds and what they are."""
    model, processor = shared_llava(attention)
    inputs = ask(processor, 1, 2)
    pad, tokenize = processor.tokenizer.pad_token_id, processor.tokenizer
    asked = [tokenize(text).input_ids[1:] for text in ("USER: is there a star ? ASSISTANT:", "what color ? ASSISTANT:")]
    short = len(asked[0]) - len(asked[1])
    more, real = torch.tensor([asked[0], [pad] * short + asked[1]]), torch.ones(2, len(asked[0]), dtype=torch.long)
    real[1, :short] = 0
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        first = model.generate(**inputs, max_new_tokens=4, **DETAILS)
        said = first.sequences[:, inputs["input_ids"].shape[1] :]
        second = {
            "input_ids": torch.cat([first.sequences, more], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(said), real], 1),
        }
        out = model.generate(**second, past_key_values=first.past_key_values, max_new_tokens=5, **DETAILS)
    answers = out.sequences[:, second["input_ids"].shape[1] :]
    for row, gap in enumerate((0, short)):
        alone, stages = one_row(inputs, row, (1, 2), trace.stages)
        rest = torch.cat([said[row], more[row, gap:], answers[row]])[None]
        wanted = masked_layers_logits(model, alone, stages, [pruner.positions] * len(stages), rest)
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], wanted[0, -5:], atol=1e-4, rtol=0)


def test_a_cache_that_holds_something_else_is_refused(llava):
    model, processor = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    pruned, cache = adapter.prune_inputs(inputs, Within(), Budget(keep_tokens=7)), DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
        with pytest.raises(ModelError, match="no cache but one that was filled in this block"), pruned.inside:
            model(**pruned.inputs, past_key_values=cache)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_mask_for_all_rows(attention):
    """A mask of one's own, of whatever structure: here the last token does not see the first five."""
    model, processor = shared_llava(attention)
    decoder, length, pruner = model.get_decoder(), 40, Within(layers=(1, 2))
    embeds = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(2, length, dtype=torch.bool)
    visual[:, 3:28] = True
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    prompt = PromptTokens(visual, number, lambda total: pruner.counts(None, 7, total), torch.zeros(2, dtype=torch.long))
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[-1, :5] = False
    results = []
    for rows in (1, 2):
        given = mask.expand(rows, 1, -1, -1)
        if attention == "eager":
            given = torch.zeros(given.shape).masked_fill(~given, torch.finfo(torch.float32).min)
        with torch.no_grad(), InsideLLM(model, [Step(stage, pruner) for stage in pruner.stages(None)], prompt) as run:
            output = decoder(inputs_embeds=embeds, attention_mask=given, use_cache=False).last_hidden_state
        results.append((output, [alive.kept for alive in run.stages]))
        assert all(min(kept) >= 2 for kept in run.stages[-1].kept)  # the last token attends to none before
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    assert results[0][1] == results[1][1]


def test_seconds_of_all_selections_add_up(llava, monkeypatch):
    model, processor = llava
    adapter, clock = adapter_for(model, processor), iter(range(1000))
    pruned = adapter.prune_inputs(ask(processor, 1, 2), Within(layers=(1, 3)), Budget(keep_tokens=7))
    monkeypatch.setattr("tokenprune.adapters.stopwatch.now", lambda device: float(next(clock)))
    assert pruned.inside.seconds == {"selection": 0.0}
    for prefills in (1, 2):
        adapter.prefill(pruned)
        assert pruned.inside.seconds == {"selection": 2.0 * prefills}


def test_layers_that_are_called_by_hand_are_left_alone(llava):
    model, processor = llava
    adapter, decoder = adapter_for(model, processor), model.get_decoder()
    hidden = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    rotation = decoder.rotary_emb(hidden, torch.arange(6)[None])
    pruned = adapter.prune_inputs(ask(processor, 1), Within(), Budget(keep_tokens=7))
    with torch.no_grad():
        plain = decoder.layers[3](hidden, position_embeddings=rotation)
        with pruned.inside:
            model(**pruned.inputs)
            assert torch.equal(decoder.layers[3](hidden, position_embeddings=rotation), plain)
