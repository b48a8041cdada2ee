"""Corners of pruning inside the LLM: odd batches, turns, masks and caches."""

import dataclasses

import pytest
import torch
from transformers import DynamicCache

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.steps import Step
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.prompt.shorten import fresh
from tokenprune.engine.session import Session
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import Within

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
@pytest.mark.parametrize("images", [(1, 2), (1, 1)], ids=str)
def test_a_padded_second_turn(attention, pruner, images):
    """Questions of different lengths are padded between what the cache holds and what they are."""
    model, processor = shared_llava(attention)
    inputs = ask(processor, *images)
    if images == (1, 1):  # and nothing else is padded
        inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][[1, 1]], inputs["attention_mask"][[1, 1]]
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
        out = model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=5, **DETAILS)
    answers = out.sequences[:, second["input_ids"].shape[1] :]
    for row, gap in enumerate((0, short)):
        alone, stages = one_row(inputs, row, images, trace.stages)
        rest = torch.cat([said[row], more[row, gap:], answers[row]])[None]
        wanted = masked_layers_logits(model, alone, stages, [pruner.positions] * len(stages), rest)
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], wanted[0, -5:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_mask_for_all_rows(attention):
    """A mask of one's own, of whatever structure: here the last token does not see the first five."""
    model, _ = shared_llava(attention)
    decoder, length, pruner = model.get_decoder(), 40, Within(layers=(1, 2))
    embeds = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(2, length, dtype=torch.bool)
    visual[:, 3:28] = True
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    quota = [pruner.counts(None, 7, total) for total in visual.sum(1).tolist()]
    prompt = PromptTokens(
        visual,
        number,
        quota,
        lambda: torch.zeros(2, dtype=torch.long),
    )
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[-1, :5] = False
    plan, results = (
        InsidePlan(tuple(Step(stage, pruner, pruner.positions) for stage in pruner.stages(None)), prompt),
        [],
    )
    for rows in (1, 2):
        given = mask.expand(rows, 1, -1, -1)
        if attention == "eager":
            given = torch.zeros(given.shape).masked_fill(~given, torch.finfo(torch.float32).min)
        with torch.no_grad(), InsideLLM(model, plan) as run:
            output = decoder(inputs_embeds=embeds, attention_mask=given, use_cache=False).last_hidden_state
        results.append((output, [alive.kept for alive in run.stages]))
        assert all(min(kept) >= 2 for kept in run.stages[-1].kept)  # the last token attends to none before
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    assert results[0][1] == results[1][1]


def test_seconds_of_all_selections_add_up(llava, monkeypatch):
    model, processor = llava
    adapter, clock = adapter_for(model, processor), iter(range(1000))
    pruned = Session(adapter).prune_inputs(ask(processor, 1, 2), Within(layers=(1, 3)), Budget(keep_tokens=7))
    monkeypatch.setattr("tokenprune.engine.stopwatch.now", lambda device: float(next(clock)))
    assert [Session(adapter).prefill(pruned).seconds for _ in range(2)] == [2.0, 2.0]


def test_layers_that_are_called_by_hand_are_left_alone(llava):
    """Between forwards in a block, and after one that failed."""
    model, processor = llava
    adapter, decoder = adapter_for(model, processor), model.get_decoder()
    hidden = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    rotation = decoder.rotary_emb(hidden, torch.arange(6)[None])
    pruned = Session(adapter).prune_inputs(ask(processor, 1), Within(), Budget(keep_tokens=7))
    with torch.no_grad():
        plain = decoder.layers[2](hidden, position_embeddings=rotation)
        with InsideLLM(model, pruned.inside):
            model(**fresh(pruned.inputs))
            assert torch.equal(decoder.layers[2](hidden, position_embeddings=rotation), plain)
            handle = decoder.layers[3].register_forward_pre_hook(lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**fresh(pruned.inputs))
            handle.remove()
            assert torch.equal(decoder.layers[2](hidden, position_embeddings=rotation), plain)


def test_the_outer_one_applies_again_after_the_inner_one(llava):
    model, processor = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1, 2)
    outer, inner = (Session(adapter).prune_inputs(inputs, Within(), Budget(keep_tokens=k)) for k in (7, 3))
    with torch.no_grad():
        wanted = Session(adapter).prefill(outer).output.logits
        inside = [InsideLLM(model, each.inside) for each in (outer, inner)]
        with inside[0]:
            with inside[1]:
                model(**fresh(inner.inputs))
            again = model(**fresh(outer.inputs), logits_to_keep=1).logits
    assert torch.equal(again, wanted)
    assert [alive.counts for each in inside for alive in each.stages] == [[7, 14], [3, 6]]


def test_hooks_that_are_called_without_keyword_arguments_do_nothing(llava):
    """As torch calls them while another thread removes them."""
    model, processor = llava
    pruned = session_for(model, processor).prune_inputs(ask(processor, 1), Within(), Budget(keep_tokens=7))
    inside = InsideLLM(model, pruned.inside)
    with inside:
        assert inside._begin(inside.decoder, ()) is None
        assert inside._before_layer(2, inside.decoder.layers[2], (torch.zeros(1, 3, 64),)) is None


@pytest.mark.parametrize("pruner", [Within(), Within(layers=(1, 3), own=True)], ids=["one", "two"])
def test_rows_of_equal_length_with_different_numbers_of_images(llava, pruner):
    """No row is padded, so that transformers passes no mask; from the first stage on one is."""
    model, processor = llava
    image, words = [model.config.image_token_id] * 25, processor.tokenizer("is there a star ?").input_ids[1:]
    ids = torch.tensor([[*image, *image, *words], [*words * 5, *image, *words]])
    inputs = {"input_ids": ids, "pixel_values": ask(processor, 3)["pixel_values"]}
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, max_new_tokens=8, **DETAILS)
    tokens = out.sequences[:, ids.shape[1] :]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * len(trace.stages), tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    assert trace.counts == [(50, 14), (25, 7)]


def test_the_last_hidden_states_are_among_the_hidden_states(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    with torch.no_grad(), tp.prune(model, processor, Within(), keep_tokens=7):
        out = model(**inputs, output_hidden_states=True)
    lengths = [hidden.shape[1] for hidden in out.hidden_states]
    text, whole = int((inputs["attention_mask"][1] == 1).sum()) - 50, inputs["input_ids"].shape[1]
    assert lengths == [whole, whole, whole, text + 14, whole]  # the third is what entered the layer of the stage
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)


@pytest.mark.parametrize("positions", ["original", "repacked"])
def test_position_ids_have_no_gaps(llava, positions):
    """Flash attention would take a gap for the end of one sequence and the beginning of another."""
    model, processor = llava
    seen, attention = [], model.get_decoder().layers[3].self_attn
    handle = attention.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with tp.prune(model, processor, Within(positions=positions), keep_tokens=7):
        model.generate(**ask(processor, 1, 2), max_new_tokens=3)
    handle.remove()
    assert [kwargs["hidden_states"].shape[1] for kwargs in seen[1:]] == [1, 1]
    for kwargs in seen:
        assert kwargs["position_ids"].tolist() == [list(range(kwargs["hidden_states"].shape[1]))]


def test_the_needed_queries_alone_are_projected(llava):
    model, processor = llava
    inputs, seen = ask(processor, 1, 2), []
    handles = [
        model.get_decoder()
        .layers[2]
        .self_attn.get_submodule(name)
        .register_forward_hook(lambda m, args, out, name=name: seen.append((name, out.shape[1])))
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    with torch.no_grad(), tp.prune(model, processor, Within(own=True), keep_tokens=7):
        model(**inputs)
    for handle in handles:
        handle.remove()
    whole = inputs["input_ids"].shape[1]
    assert seen[:3] == [("q_proj", 1), ("k_proj", whole), ("v_proj", 1)]


def test_beams_draw_what_their_row_draws(llava):
    model, processor = llava
    inputs, pruner = ask(processor, 1, 1), tp.create_pruner("random", layer=1)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        model.generate(**inputs, max_new_tokens=2)
        alone = trace.stages[0].keep
        model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert trace.stages[0].keep == alone
    assert alone[0] != alone[1]


def test_masks_of_a_prefill_do_not_outlive_it(llava):
    model, processor = llava
    adapter = adapter_for(model, processor)
    pruned = Session(adapter).prune_inputs(ask(processor, 1, 2), Within(layers=(1, 3)), Budget(keep_tokens=7))
    assert [alive.memo for alive in Session(adapter).prefill(pruned).stages] == [{}, {}]


@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_windows_over_a_cache_that_holds_everything(rows):
    """Sliding and full layers, in a cache that was not told of windows."""
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    text = {"use_sliding_window": True, "sliding_window": 20, "layer_types": kinds}
    model, processor = tiny_llava(decoder="qwen2", text=text), tiny_processor()
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, Within(layers=(1,)), keep_tokens=20) as trace:
        out = model.generate(**inputs, **{CACHE: DynamicCache()}, max_new_tokens=9, **DETAILS)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"], tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
