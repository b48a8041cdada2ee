"""Pruning inside the LLM: exact in prefill and in each decoding step, whatever ``generate`` is asked to do."""

import threading

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import StaticSlidingWindowLayer

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import Project, Within

STEPS = 17  # the first is the prefill's
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
PRUNERS = [
    pytest.param(Within(), id="previous"),
    pytest.param(Within(layers=(1, 3), positions="repacked"), id="repacked"),
    pytest.param(Within(layers=(1, 2, 3), own=True), id="own"),
]


@pytest.fixture(params=["sdpa", "eager"])
def llava(request):
    return shared_llava(request.param)


def generated(model, inputs, steps=STEPS, **how):
    """Answer tokens (B, T), their logits (B, T, vocabulary), and the cache."""
    out = model.generate(**inputs, max_new_tokens=steps, **DETAILS, **how)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), cache_of(out)


def policies(pruner):
    return [pruner.positions] * len(pruner.layers)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rows", [(1,), (1, 2), (2, 1, 1)], ids=str)
def test_dropping_is_masking_from_that_layer_on(llava, rows, pruner):
    model, processor = llava
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, inputs)
    wanted = masked_layers_logits(model, inputs, trace.stages, policies(pruner), tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    assert (tokens != tokens[:, :1]).any()  # a model that repeats itself would hide errors in decoding
    assert trace.counts == [(25 * n, 7 * n) for n in rows]


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(llava, rows, pruner):
    model, processor = llava
    inputs = ask(processor, *rows)
    tokens, logits, _ = generated(model, inputs)
    with torch.no_grad():
        forward = model(**inputs, output_hidden_states=True)
        with tp.prune(model, processor, pruner, keep_ratio=1.0) as trace:
            again = model(**inputs, output_hidden_states=True)
            assert all(torch.equal(a, b) for a, b in zip(again.hidden_states, forward.hidden_states, strict=True))
            assert torch.equal(again.logits, forward.logits)
            pruned = generated(model, inputs)
    assert torch.equal(pruned[0], tokens)
    assert torch.equal(pruned[1], logits)
    assert len(trace.stages) == len(pruner.layers)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_each_layer_holds_what_it_saw(llava, pruner):
    model, processor = llava
    inputs = ask(processor, 1)
    text = inputs["input_ids"].shape[1] - 25
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        _, _, cache = generated(model, inputs, 4)
    alive, expected = [25, *(stage.counts[0] for stage in trace.stages)], []
    for layer in range(4):
        expected.append(text + 3 + alive[sum(at <= layer for at in pruner.layers)])
    assert [layer.keys.shape[2] for layer in cache.layers] == expected
    assert len(set(expected)) == 1 + len(pruner.layers)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {CACHE: DynamicCache},
        {"logits_to_keep": 3},
    ],
    ids=lambda how: next(iter(how)),
)
def test_ways_to_generate(llava, how, rows, pruner):
    model, processor = llava
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        plain, logits, _ = generated(model, inputs, 8)
        stages = trace.stages
        how = {name: value() if isinstance(value, type) else value for name, value in how.items()}
        again, others, _ = generated(model, inputs, 8, **how)
    torch.testing.assert_close(others, logits, atol=1e-4, rtol=0)
    assert torch.equal(again, plain)
    assert [stage.keep for stage in trace.stages] == [stage.keep for stage in stages]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_assisted_decoding(llava, pruner):
    """The model checks guesses many at a time, and takes back those that were wrong from all layers."""
    model, processor = llava
    inputs = ask(processor, 1)
    with tp.prune(model, processor, pruner, keep_tokens=7):
        plain = model.generate(**inputs, max_new_tokens=12)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, prompt_lookup_num_tokens=3), plain)
        drafter = tiny_llava()
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, assistant_model=drafter), plain)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rows", [(1,), (2, 1)], ids=str)
def test_beam_search(llava, rows, pruner):
    """Each beam's score is that of the masked reference, summed over its tokens."""
    model, processor = llava
    inputs = ask(processor, *rows)
    how = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "output_scores": True, "length_penalty": 0.0}
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, **how, **DETAILS)
    assert len(trace.counts) == len(rows)
    for beam in range(2):
        tokens = out.sequences[beam::2, inputs["input_ids"].shape[1] :]
        logits = masked_layers_logits(model, inputs, trace.stages, policies(pruner), tokens)
        scores = logits.log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(out.sequences_scores[beam::2], scores, atol=1e-4, rtol=0)


def test_several_sampled_answers(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, Within(), keep_tokens=7) as trace:
        torch.manual_seed(0)
        how = {**DETAILS, "do_sample": True, "num_return_sequences": 2, "max_new_tokens": 5}
        out = model.generate(**inputs, **how)
    for answer in range(2):
        tokens = out.sequences[answer::2, inputs["input_ids"].shape[1] :]
        wanted = masked_layers_logits(model, inputs, trace.stages, ["original"], tokens)
        torch.testing.assert_close(torch.stack(out.logits, 1)[answer::2], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("rows", [(1,), (1, 1)], ids=str)
def test_a_second_turn_on_the_same_cache(llava, rows, pruner):
    """Equal to the masked reference over the whole conversation, in which the second question sees what was kept."""
    model, processor = llava
    inputs = ask(processor, *rows)
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        first = model.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True)
        more = processor.tokenizer([" USER: is there a star ? ASSISTANT:"] * len(rows), return_tensors="pt")
        ids = torch.cat([first.sequences, more.input_ids[:, 1:]], 1)
        mask = torch.ones_like(ids)
        mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
        whole = {"input_ids": ids, "attention_mask": mask, CACHE: cache_of(first)}
        tokens, logits, _ = generated(model, whole, 6)
    answers = torch.cat([ids[:, inputs["input_ids"].shape[1] :], tokens], 1)
    wanted = masked_layers_logits(model, inputs, trace.stages, policies(pruner), answers)
    torch.testing.assert_close(logits, wanted[:, -6:], atol=1e-4, rtol=0)


def test_a_second_turn_brings_no_images(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    with tp.prune(model, processor, Within(), keep_tokens=7):
        first = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, inputs["input_ids"]], 1)
        with pytest.raises(ModelError, match="later turns cannot bring images"):
            model.generate(ids, pixel_values=inputs["pixel_values"], **{CACHE: cache_of(first)})


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_has_the_outputs_of_the_whole_prompt(llava, side, pruner):
    """The logits of a dropped column are those of the last column before it that is left; so is the loss."""
    model, processor = llava
    inputs = ask(processor, 1, 2, side=side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == processor.image_token_id] = -100
    labels[labels == processor.tokenizer.bos_token_id] = -100
    with torch.no_grad(), tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model(**inputs, labels=labels, output_hidden_states=True)
    assert out.logits.shape[:2] == inputs["input_ids"].shape
    assert [h.shape[1] for h in out.hidden_states[:2]] == [inputs["input_ids"].shape[1]] * 2
    predicted, truths = [], []
    for row, real in enumerate(inputs["attention_mask"].bool()):
        ids = inputs["input_ids"][row][real]
        one = {
            "input_ids": ids[None],
            "pixel_values": inputs["pixel_values"][:1] if row == 0 else inputs["pixel_values"][1:],
        }
        stages = [type(stage)(stage.stage, [stage.keep[row]], [stage.counts[row]]) for stage in trace.stages]
        wanted = masked_row(model, one, stages, policies(pruner))
        visual, kept = ids == processor.image_token_id, torch.zeros(len(ids), dtype=torch.bool)
        kept[~visual] = True
        kept[visual.nonzero()[stages[-1].keep[0], 0]] = True
        source = torch.where(kept, torch.arange(len(ids)), 0).cummax(0).values
        torch.testing.assert_close(out.logits[row][real], wanted[source], atol=1e-4, rtol=0)
        predicted.append(wanted[source][:-1])
        truths.append(labels[row][real][1:])
    loss = torch.nn.functional.cross_entropy(torch.cat(predicted), torch.cat(truths))
    assert out.loss.item() == pytest.approx(loss.item(), abs=1e-4)


def masked_row(model, inputs, stages, positions):
    """Logits of all columns of one unpadded prompt."""
    from tokenprune.testing.masked_layers import layer_loop, llava_embeds

    x, visual = llava_embeds(model)(inputs)[0], inputs["input_ids"][0] == model.config.image_token_id
    drops = [(stage.stage.layer, stage.keep[0]) for stage in stages]
    with torch.no_grad():
        return layer_loop(model, x, visual, torch.arange(len(x))[None], drops, positions)


def test_gradients_flow():
    model, processor = tiny_llava(), tiny_processor()
    inputs = ask(processor, 1)
    model.train()
    with tp.prune(model, processor, Within(), keep_tokens=7):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.base_model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_the_stateless_way_is_the_same(llava):
    model, processor = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1, 2)
    with tp.prune(model, processor, Within(), keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, inputs)
    pruned = Session(adapter).prune_inputs(inputs, Within(), Budget(keep_tokens=7))
    ran = Session(adapter).prefill(pruned)
    assert torch.equal(ran.output.logits[:, 0], logits[:, 0])
    assert [alive.kept for alive in ran.stages] == [stage.keep for stage in trace.stages]
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert Session(adapter).generate(pruned, max_new_tokens=STEPS).output == [text.strip() for text in texts]


def test_a_sample_alone_is_the_sample_in_a_batch(llava):
    model, processor = llava
    batch = ask(processor, 2, 1)
    alone = {"input_ids": batch["input_ids"][1:, -int(batch["attention_mask"][1].sum()) :]}
    alone["pixel_values"] = batch["pixel_values"][2:]
    with tp.prune(model, processor, Within(layers=(1, 2)), keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, batch)
        together = [stage.keep[1] for stage in trace.stages]
        single, single_logits, _ = generated(model, alone)
    assert [stage.keep[0] for stage in trace.stages] == together
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=1e-4, rtol=0)


def test_each_row_picks_its_own_tokens(llava):
    model, processor = llava
    with tp.prune(model, processor, Within(), keep_tokens=7) as trace:
        generated(model, ask(processor, 1, 1, 1), 1)
    assert len({tuple(row) for row in trace.stages[0].keep}) == 3


def test_rows_without_images_pass_by(llava):
    model, processor = llava
    inputs = ask(processor, 1, 0, 2)
    with tp.prune(model, processor, Within(layers=(1, 3)), keep_tokens=7) as trace:
        tokens, logits, _ = generated(model, inputs, 6)
    assert trace.counts == [(25, 7), (0, 0), (50, 14)]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * 2, tokens)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def configs(model):
    return [id(layer.self_attn.config) for layer in model.get_decoder().layers]


def test_nothing_is_left_on_the_model(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    before, config, plain = hooks(model), configs(model), generated(model, inputs, 4)[1]
    with (
        tp.prune(model, processor, Within(own=True), keep_tokens=7),
        tp.prune(model, processor, Within(), keep_tokens=5),
    ):
        generated(model, inputs, 4)
    handle = model.get_decoder().layers[3].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"), tp.prune(model, processor, Within(), keep_tokens=5):
        generated(model, inputs, 4)
    handle.remove()
    assert (hooks(model), configs(model)) == (before, config)
    assert torch.equal(generated(model, inputs, 4)[1], plain)


def broken(module, args, output):
    raise RuntimeError("broken")


def test_threads_do_not_meet(llava):
    """Threads with different pruners, and one without, run one model at the same time."""
    model, processor = llava
    inputs = ask(processor, 1, 2)
    pruners = [Within(), Within(layers=(1, 3), positions="repacked"), Project(), None]

    def answer(pruner):
        with tp.prune(model, processor, pruner, **({"keep_tokens": 7} if pruner else {})):
            return generated(model, inputs, 6)[1]

    expected, found = [answer(pruner) for pruner in pruners], {}

    def work(number):
        found[number] = [answer(pruners[number]) for _ in range(6)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pruners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(expected):
        assert len(found[number]) == 6
        for other in found[number]:
            torch.testing.assert_close(other, logits, atol=1e-5, rtol=0)


def rolling():
    cache = DynamicCache()
    cache.layers = [StaticSlidingWindowLayer(max_cache_len=99, sliding_window=16) for _ in range(4)]
    return cache


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prefill_chunk_size": 6}, "whole prompt in one forward|loses images with prefill_chunk_size"),
        ({CACHE: rolling}, "StaticSlidingWindowLayer"),
    ],
)
def test_what_cannot_be_done_is_said(llava, how, message):
    model, processor = llava
    how = {name: value() if callable(value) else value for name, value in how.items()}
    with pytest.raises(ModelError, match=message), tp.prune(model, processor, Within(), keep_tokens=7):
        model.generate(**ask(processor, 1), max_new_tokens=3, **how)


def test_attention_that_cannot_be_pruned():
    model, processor = tiny_llava(), tiny_processor()
    model.get_decoder().config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="flex_attention"), tp.prune(model, processor, Within(), keep_tokens=7):
        model.generate(**ask(processor, 1), max_new_tokens=3)
