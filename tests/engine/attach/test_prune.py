"""``tokenprune.prune``: what a user can do with a model in a block, and that nothing of it stays."""

import dataclasses
import gc
import threading
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.inputs import CHUNKS_WORK
from tokenprune.core.errors import BudgetError, ConfigError, ModelError, RegistryError, TokenPruneError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.engine.loading import adapter_for
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor
from tokenprune.testing.masked import masked_logits, masked_rows
from tokenprune.testing.pictures import IMAGE_SIZE, picture
from tokenprune.testing.pruners import Project, Relevance

POSITIONS = ("original", "repacked")
KEEP = 7
DETAILS = {"return_dict_in_generate": True, "output_logits": True}


def prune(model, processor, positions="repacked", **options):
    return tp.prune(model, processor, Project(positions=positions), **{"keep_tokens": KEEP, **options})


def answers(out, inputs):
    return out.sequences[:, inputs["input_ids"].shape[1] :]


def extended(inputs, sequences, text, processor, images=0):
    """The conversation so far, and what the user says next."""
    more = processor.tokenizer([text] * len(sequences), add_special_tokens=False, return_tensors="pt").input_ids
    image = torch.full((len(sequences), 25 * images), processor.image_token_id)
    ids = torch.cat([sequences, image, more], 1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask}


# What may be done in a block


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        pytest.param({"prefill_chunk_size": 6}, marks=pytest.mark.skipif(not CHUNKS_WORK, reason="older transformers")),
        {CACHE: DynamicCache},
        {"logits_to_keep": 3},
    ],
    ids=lambda how: next(iter(how)),
)
def test_ways_to_generate(llava, how, rows, positions):
    model, processor = llava
    inputs = ask(processor, *rows)
    with prune(model, processor, positions) as trace:
        plain = model.generate(**inputs, max_new_tokens=8)
        how = {name: value() if isinstance(value, type) else value for name, value in how.items()}
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, **how), plain)
    first, second = trace.calls
    assert torch.equal(first.selection.keep, second.selection.keep)


def test_prompt_lookup(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    with prune(model, processor):
        plain = model.generate(**inputs, max_new_tokens=12)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, prompt_lookup_num_tokens=3), plain)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (2, 1)], ids=str)
def test_beam_search(llava, rows, positions):
    """Each beam's score is that of the masked reference, summed over its tokens."""
    model, processor = llava
    inputs = ask(processor, *rows)
    how = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "output_scores": True, "length_penalty": 0.0}
    with prune(model, processor, positions) as trace:
        out = model.generate(**inputs, **how, **DETAILS)
    assert len(out.sequences) == 2 * len(rows)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(2, 0))
    for beam in range(2):
        tokens = answers(out, inputs)[beam::2]
        logits = masked_logits(model, inputs, trace.keep, positions, tokens)
        scores = logits.log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(out.sequences_scores[beam::2], scores, atol=1e-4, rtol=0)


def test_sequences_begin_with_the_caller_s_prompt(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    with prune(model, processor):
        torch.manual_seed(0)
        out = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
        ids, rest = inputs["input_ids"], {name: value for name, value in inputs.items() if name != "input_ids"}
        assert torch.equal(model.generate(ids, **rest, max_new_tokens=3)[:, : ids.shape[1]], ids)
    assert torch.equal(out[:, : ids.shape[1]], ids.repeat_interleave(2, 0))


@pytest.mark.parametrize("given", ["argument", "config", "model"])
def test_lengths_count_the_caller_s_prompt(given):
    model, processor = tiny_llava(), tiny_processor()
    inputs = ask(processor, 1)
    longest, options = inputs["input_ids"].shape[1] + 4, {}
    if given == "argument":
        options = {"max_length": longest}
    elif given == "config":
        options = {"generation_config": GenerationConfig(max_length=longest, pad_token_id=0)}
    else:
        model.generation_config.max_length = longest
    with prune(model, processor):
        assert model.generate(**inputs, **options).shape[1] == longest


def test_a_length_that_is_none_is_not_that_of_the_model():
    model, processor = tiny_llava(), tiny_processor()
    inputs = ask(processor, 1)
    longest = inputs["input_ids"].shape[1] + 6
    model.generation_config.max_new_tokens = 3
    with prune(model, processor):
        assert model.generate(**inputs, max_length=longest, max_new_tokens=None).shape[1] == longest


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss(llava, side, positions):
    """The loss is that over the columns that stay: the masked model's logits there against the labels there."""
    model, processor = llava
    inputs = ask(processor, 1, 2, side=side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == processor.image_token_id] = -100
    labels[labels == processor.tokenizer.bos_token_id] = -100  # nothing, or padding, is before it
    with torch.no_grad(), prune(model, processor, positions) as trace:
        loss = model(**inputs, labels=labels).loss
    predicted, wanted = [], []
    nothing = torch.empty(2, 0, dtype=torch.long)
    for label, (logits, seen, real) in zip(
        labels, masked_rows(model, inputs, trace.keep, positions, nothing), strict=True
    ):
        predicted.append(logits[seen][:-1])
        wanted.append(label[real][seen][1:])
    expected = torch.nn.functional.cross_entropy(torch.cat(predicted), torch.cat(wanted))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_flow_in_training():
    model, processor = tiny_llava(), tiny_processor()
    inputs = ask(processor, 1)
    model.train()
    with prune(model, processor):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.base_model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.base_model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("positions", POSITIONS)
def test_given_position_ids_are_kept(llava, positions):
    """Rotary embeddings see differences alone, so shifting all positions by one number changes nothing."""
    model, processor = llava
    inputs = ask(processor, 1, 1)
    length = inputs["input_ids"].shape[1]
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"} | {
        "input_ids": inputs["input_ids"][1:].repeat(2, 1)
    }
    with prune(model, processor, positions), torch.no_grad():
        plain, generated = model(**inputs).logits, model.generate(**inputs, max_new_tokens=6)
        shifted = {"position_ids": torch.arange(length)[None] + 100}
        torch.testing.assert_close(model(**inputs, **shifted).logits, plain, atol=5e-4, rtol=0)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, **shifted), generated)


def test_a_pipeline(llava):
    from transformers import pipeline

    model, processor = llava
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "is there a star ?"}]
    with prune(model, processor) as trace:
        said = pipe(text=[{"role": "user", "content": content}], max_new_tokens=3)
    assert trace.counts == [(25, KEEP)]
    assert isinstance(said[0]["generated_text"][-1]["content"], str)


def test_text_alone_passes_by(llava):
    model, processor = llava
    text = dict(processor(text=["USER: is there a star ? ASSISTANT:"], return_tensors="pt"))
    plain = model.generate(**text, max_new_tokens=4)
    with prune(model, processor) as trace, torch.no_grad():
        assert torch.equal(model.generate(**text, max_new_tokens=4), plain)
        assert torch.equal(model.generate(text["input_ids"], max_new_tokens=4), plain)
        logits = model(**text).logits
    assert torch.equal(logits.argmax(-1)[:, -1], plain[:, text["input_ids"].shape[1]])
    assert trace.calls == []


def test_the_trace(llava):
    model, processor = llava
    with prune(model, processor) as trace:
        with pytest.raises(TokenPruneError, match="nothing was pruned"):
            _ = trace.keep
        model.generate(**ask(processor, 1, 0, 2), max_new_tokens=2)
        model.generate(**ask(processor, 1, seed=9), max_new_tokens=2)
    assert trace.calls[0].counts == [(25, KEEP), (0, 0), (50, 2 * KEEP)]
    assert trace.calls[0].selection.keep.shape == (3, KEEP)
    assert trace.keep.shape == (1, KEEP)
    assert trace.counts == [(25, KEEP)]
    assert trace.seconds.keys() == {"vision", "selection", "prefill"}
    assert all(0 < seconds < 10 for call in trace.calls for seconds in call.seconds.values())


@pytest.mark.parametrize("asked", [False, True])
def test_the_trace_holds_features_if_they_are_asked_for(llava, asked):
    model, processor = llava
    with tp.prune(model, processor, "pooling", keep_tokens=4, trace_features=asked) as trace:
        model.generate(**ask(processor, 1), max_new_tokens=1)
    assert (trace.last.selection.merged is not None) == asked


def test_the_trace_of_what_is_attached_is_that_of_the_last_calls(llava):
    model, processor = llava
    handle = tp.attach(model, processor, Project(), keep_tokens=KEEP, trace_calls=2)
    for seed in range(3):
        model.generate(**ask(processor, 1, seed=seed), max_new_tokens=1)
    handle.remove()
    assert len(handle.trace.calls) == 2
    with pytest.raises(ConfigError, match="trace_calls must be at least 1"):
        tp.attach(model, processor, Project(), keep_tokens=KEEP, trace_calls=0)


@pytest.mark.skipif(not CHUNKS_WORK, reason="older transformers")
def test_prefill_is_timed_once_and_whole(llava, monkeypatch):
    model, processor = llava
    clock = iter(range(1000))
    monkeypatch.setattr("tokenprune.engine.attach.model_run.now", lambda device: float(next(clock)))
    with prune(model, processor) as trace:
        model.generate(**ask(processor, 1), max_new_tokens=5)
        model.generate(**ask(processor, 1), max_new_tokens=5, prefill_chunk_size=10)
    columns = ask(processor, 1)["input_ids"].shape[1] - 25 + KEEP
    assert 10 < columns <= 20  # two chunks
    assert [call.seconds["prefill"] for call in trace.calls] == [1.0, 2.0]
    assert next(clock) == 6  # decoding steps do not look at the clock, which would make them wait for the device


# A second turn on the same cache


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize("pixels", [True, False])
def test_second_turn(llava, rows, positions, pixels):
    model, processor = llava
    inputs = ask(processor, *rows)
    with prune(model, processor, positions) as trace:
        first = model.generate(**inputs, max_new_tokens=5, **DETAILS)
        second = extended(inputs, first.sequences, "USER: is there a star ? ASSISTANT:", processor)
        images = {"pixel_values": inputs["pixel_values"]}
        cache = {CACHE: cache_of(first)}
        out = model.generate(**second, **(images if pixels else {}), **cache, max_new_tokens=8, **DETAILS)
    wanted = masked_logits(model, {**second, **images}, trace.keep, positions, answers(out, second))
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=5e-5, rtol=0)
    assert len(trace.calls) == 1
    assert torch.equal(out.sequences[:, : second["input_ids"].shape[1]], second["input_ids"])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("everything", [True, False], ids=["all images", "new images"])
def test_later_turns_that_bring_images(llava, everything, positions):
    """Three turns; the second shows another image in each row, of which only the new one is pruned."""
    model, processor = llava
    inputs, more = ask(processor, 1, 2), ask(processor, 1, 1, seed=50)["pixel_values"]
    old = inputs["pixel_values"]
    together = torch.stack([old[0], more[0], old[1], old[2], more[1]])
    with prune(model, processor, positions) as trace:
        first = model.generate(**inputs, max_new_tokens=5, **DETAILS)
        second = extended(inputs, first.sequences, "is there a star ? ASSISTANT:", processor, images=1)
        out = model.generate(
            **second,
            pixel_values=together if everything else more,
            **{CACHE: cache_of(first)},
            max_new_tokens=5,
            **DETAILS,
        )
        third = extended(second, out.sequences, "USER: where is the star ? ASSISTANT:", processor)
        images = {"pixel_values": together} if everything else {}
        last = model.generate(**third, **images, **{CACHE: cache_of(out)}, max_new_tokens=5, **DETAILS)
    a, b = (call.selection.keep for call in trace.calls)
    assert trace.counts == [(25, KEEP), (25, KEEP)]
    keep = torch.stack([a[0], b[0], a[1], a[2], b[1]])
    for turn, result in ((second, out), (third, last)):
        wanted = masked_logits(model, {**turn, "pixel_values": together}, keep, positions, answers(result, turn))
        torch.testing.assert_close(torch.stack(result.logits, 1), wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
def test_decoding_by_hand(llava, rows, positions):
    """A loop of forwards in which the user counts in the whole prompt; also with the new tokens of a turn at once."""
    model, processor = llava
    inputs = ask(processor, *rows)
    with prune(model, processor, positions) as trace, torch.no_grad():
        out = model(**inputs)
        tokens, mask = [out.logits[:, -1:].argmax(-1)], inputs["attention_mask"]
        for _ in range(3):
            mask = torch.cat([mask, torch.ones_like(tokens[-1])], 1)
            with_mask = {"attention_mask": mask} if len(rows) > 1 else {}
            out = model(input_ids=tokens[-1], **{CACHE: cache_of(out)}, **with_mask)
            tokens.append(out.logits[:, -1:].argmax(-1))
        new = torch.full((len(rows), 2), 9)
        mask = torch.cat([mask, torch.ones(len(rows), 3, dtype=torch.long)], 1)
        chunk = torch.cat([tokens[-1], new], 1)
        result = model.generate(chunk, attention_mask=mask, **{CACHE: cache_of(out)}, max_new_tokens=4)
    sequence = torch.cat([*tokens, new, result[:, 3:]], 1)
    wanted = masked_logits(model, inputs, trace.keep, positions, sequence).argmax(-1)
    assert torch.equal(wanted[:, :4], sequence[:, :4])
    assert torch.equal(wanted[:, 6:], sequence[:, 6:])
    assert torch.equal(result[:, :3], chunk)


def test_caches_do_not_live_longer(llava):
    model, processor = llava
    with prune(model, processor):
        out = model.generate(**ask(processor, 1), max_new_tokens=2, return_dict_in_generate=True)
        cache = weakref.ref(cache_of(out))
        del out
        gc.collect()
        assert cache() is None


def test_what_does_not_continue_a_cache(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    with prune(model, processor):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        cache = {CACHE: cache_of(first), "max_new_tokens": 2}
        second = extended(inputs, first.sequences, "is there a star ?", processor)
        other = second["input_ids"].clone()
        other[:, 1] = 8
        with pytest.raises(ModelError, match="do not continue the conversation"):
            model.generate(**{**second, "input_ids": other}, **cache)
        with pytest.raises(ModelError, match="do not continue the conversation"):
            model.generate(**second, position_ids=torch.arange(other.shape[1])[None], **cache)
        with pytest.raises(ModelError, match="no placeholder for it"):
            model.generate(**second, pixel_values=ask(processor, 2)["pixel_values"], **cache)
        image = extended(inputs, first.sequences, "is there a star ?", processor, images=1)
        with pytest.raises(ModelError, match="no image is given"):
            model.generate(**image, **cache)
        new = image["input_ids"][:, inputs["input_ids"].shape[1] + 2 :]  # the last generated token is not cached
        with pytest.raises(ModelError, match="whole conversation"):
            model.generate(new, attention_mask=image["attention_mask"], pixel_values=inputs["pixel_values"], **cache)
    with prune(model, processor), pytest.raises(ModelError, match="not filled in this block"):
        model.generate(**second, **cache)
    with prune(model, processor):  # beams are not the rows of the caller
        beams = model.generate(**inputs, num_beams=2, max_new_tokens=3, return_dict_in_generate=True)
        with pytest.raises(ModelError, match="not filled in this block"):
            model.generate(**second, **{CACHE: cache_of(beams)}, max_new_tokens=2)


# Nothing stays


def state(model):
    """Everything that a block could leave on a model or its modules."""
    kinds = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return [
        (name, type(module), {kind: list(getattr(module, kind)) for kind in kinds}, sorted(vars(module)))
        for name, module in model.named_modules()
    ]


def fail(module, args):
    raise RuntimeError("the LLM fails")


def test_nothing_stays_after_success_and_failure(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    plain = model.generate(**inputs, max_new_tokens=4)
    before = state(model)
    with prune(model, processor), prune(model, processor, "original"):
        model.generate(**inputs, max_new_tokens=4)
        assert state(model) != before
    assert state(model) == before
    handle = model.base_model.language_model.register_forward_pre_hook(fail)
    for call in (lambda: model.generate(**inputs, max_new_tokens=2), lambda: model(**inputs)):
        with pytest.raises(RuntimeError, match="the LLM fails"), prune(model, processor):
            call()
    handle.remove()
    with pytest.raises(KeyError), prune(model, processor), prune(model, processor):
        raise KeyError
    assert state(model) == before
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), plain)


def test_after_a_failed_forward_the_block_goes_on(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    with prune(model, processor) as trace, torch.no_grad():
        plain = model(**inputs).logits
        handle = model.lm_head.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="the LLM fails"):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, plain)
    assert len(trace.calls) == 2


def test_the_innermost_block_applies_alone(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    with prune(model, processor, keep_tokens=9) as outer:
        alone = model.generate(**inputs, max_new_tokens=6)
        with prune(model, processor, keep_tokens=4) as inner:
            model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6), alone)
    assert [call.counts for call in outer.calls] == [[(25, 9)], [(25, 9)]]
    assert inner.counts == [(25, 4)]


def test_two_models_in_nested_blocks(llava):
    model, processor = llava
    other, inputs = tiny_llava(), ask(processor, 1)
    with prune(model, processor, keep_tokens=9) as outer, prune(other, processor, keep_tokens=4) as inner:
        model.generate(**inputs, max_new_tokens=2)
        other.generate(**inputs, max_new_tokens=2)
    assert (outer.counts, inner.counts) == ([(25, 9)], [(25, 4)])


def test_a_model_s_own_wrapper_comes_back():
    model, processor = tiny_llava(), tiny_processor()
    called = []
    original = model.generate
    model.generate = own = lambda *args, **kwargs: called.append(1) or original(*args, **kwargs)
    with prune(model, processor) as trace:
        model.generate(**ask(processor, 1), max_new_tokens=2)
    assert model.generate is own
    assert called
    assert trace.counts == [(25, KEEP)]


def test_threads_do_not_meet(llava):
    """Two threads prune differently and a third does not, at once and many times, on one model."""
    model, processor = llava
    inputs = ask(processor, 1, 2)
    results, errors = {4: [], 9: [], None: []}, []

    def work(keep):
        try:
            for _ in range(6):
                if keep is None:
                    with tp.prune(model, processor, None) as trace:
                        results[keep].append(model.generate(**inputs, max_new_tokens=6))
                    assert trace.calls == []
                    continue
                with prune(model, processor, keep_tokens=keep) as trace:
                    results[keep].append(model.generate(**inputs, max_new_tokens=6))
                assert trace.counts == [(25, keep), (50, 2 * keep)]
        except Exception as error:
            errors.append(error)

    before, wanted = state(model), {}
    wanted[None] = model.generate(**inputs, max_new_tokens=6)
    for keep in (4, 9):
        with prune(model, processor, keep_tokens=keep):
            wanted[keep] = model.generate(**inputs, max_new_tokens=6)
    threads = [threading.Thread(target=work, args=(keep,)) for keep in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for keep, got in results.items():
        assert len(got) == 6
        assert all(torch.equal(one, wanted[keep]) for one in got), keep
    assert state(model) == before


def test_a_thread_without_a_block_is_untouched_and_told(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    plain, got = model.generate(**inputs, max_new_tokens=6), []
    thread = threading.Thread(target=lambda: got.append(model.generate(**inputs, max_new_tokens=6)))
    with prune(model, processor) as trace, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        thread.start()
        thread.join()
    assert [(warning.category, Path(warning.filename).name) for warning in told] == [
        (tp.UnprunedWarning, "test_prune.py")
    ]
    assert torch.equal(got[0], plain)
    assert trace.calls == []


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_tokens": 26}, BudgetError, "exceeds the 25 visual tokens"),
        ({"keep_tokens": 0}, BudgetError, "at least 1"),
        ({"keep_tokens": None, "keep_ratio": 1.5}, BudgetError, r"in \(0, 1\]"),
        ({"keep_ratio": 0.5}, BudgetError, "got keep_tokens and keep_ratio"),
        ({"keep_tokens": None}, BudgetError, "got none"),
        ({"flops": 1e6}, BudgetError, "got keep_tokens and flops"),
        ({"text_tokens": 9}, BudgetError, "text_tokens goes with flops"),
        ({"keep_tokens": None, "flops": 9.0}, BudgetError, "with one visual token kept"),
    ],
)
def test_budgets(llava, options, error, message):
    model, processor = llava
    with pytest.raises(error, match=message), prune(model, processor, **options):
        model.generate(**ask(processor, 1), max_new_tokens=1)


def test_flops(llava):
    """The budget is the prefill of a prompt with as much text."""
    model, processor = llava
    inputs, spec = ask(processor, 1), adapter_for(model, processor).spec
    text = inputs["input_ids"].shape[1] - 25
    limit = OperationPlan.drop_at(spec, [PRE_LLM], [7], 25).prefill_flops(spec.llm, text)
    with tp.prune(model, processor, "uniform", flops=limit, text_tokens=text) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.keep.shape == (1, 7)


def test_pruners(llava):
    model, processor = llava

    def prune_with(pruner):
        return tp.prune(model, processor, pruner, keep_tokens=3)

    with pytest.raises(RegistryError, match="unknown pruner"), tp.prune(model, processor, "cdprunner", keep_tokens=3):
        pass
    with pytest.raises(ConfigError, match="kernel"), tp.prune(model, processor, Project(), keep_tokens=3, kernel="rbf"):
        pass
    later = dataclasses.make_dataclass(
        "Later", [], bases=(Project,), namespace={"stages": lambda self, spec: (decoder(4),)}, frozen=True
    )
    with pytest.raises(ConfigError, match="prunes at layer=4, but the LLM has 4"), prune_with(later()):
        pass
    seeing = dataclasses.make_dataclass(
        "Seeing", [], bases=(Relevance,), namespace={"stages": lambda self, spec: (decoder(2),)}, frozen=True
    )
    with (
        pytest.raises(ModelError, match=r"inside the LLM \(layer=2\) cannot give the signals clip"),
        prune_with(seeing()),
    ):
        pass
    with pytest.raises(ModelError, match="no adapter knows"), prune(torch.nn.Linear(1, 1), processor):
        pass


REFUSED = {
    "no image": (lambda x: x.pop("pixel_values"), "has image placeholders, and no image is given"),
    "no placeholder": (lambda x: x["input_ids"].fill_(8), "no placeholder for it"),
    "other numbers": (lambda x: x.update(pixel_values=x["pixel_values"][:1]), r"\[25, 50\] image placeholders"),
    "cut placeholders": (lambda x: x["input_ids"][:, -20].fill_(8), "image placeholders"),
    "other size": (
        lambda x: x.update(pixel_values=torch.zeros(3, 3, 48, 48)),
        f"images, 3, {IMAGE_SIZE}, {IMAGE_SIZE}",
    ),
    "another shape": (lambda x: x.update(pixel_values=torch.zeros(3, 5, 3, 40, 40)), "pixel_values must be"),
    "embeddings": (
        lambda x: x.update(inputs_embeds=torch.zeros(2, 63, 64), input_ids=None),
        "do not tell where the images are",
    ),
    "a hidden image": (lambda x: x["attention_mask"].fill_(0), "hides image placeholders"),
    "a square mask": (lambda x: x.update(attention_mask=torch.ones(2, 1, 63, 63)), "attention_mask must be"),
    "encoded images": (lambda x: x.update(mm_encoder_outputs={"image": None}), "encoded already"),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("way", ["generate", "forward"])
def test_inputs_that_cannot_be_pruned(llava, way, change):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    break_them, message = REFUSED[change]
    break_them(inputs)
    before = state(model)
    with prune(model, processor) as trace, pytest.raises(ModelError, match=message):
        model.generate(**inputs, max_new_tokens=1) if way == "generate" else model(**inputs)
    assert trace.calls == []
    assert state(model) == before


def test_padding_without_a_mask_is_refused(llava):
    model, processor = llava
    inputs = ask(processor, 1, 2)
    del inputs["attention_mask"]
    with prune(model, processor), pytest.raises(ModelError, match="attention_mask"):
        model.generate(**inputs, max_new_tokens=1)


def test_chunks_are_refused_where_transformers_loses_images(llava, monkeypatch):
    model, processor = llava
    monkeypatch.setattr("tokenprune.engine.attach.block.CHUNKS_WORK", False)
    config = GenerationConfig(prefill_chunk_size=4, max_new_tokens=1)
    for how in ({"prefill_chunk_size": 4}, {"generation_config": config}):
        with prune(model, processor), pytest.raises(ModelError, match="prefill_chunk_size"):
            model.generate(**ask(processor, 1), **how)


def test_questions_must_fit(llava):
    model, processor = llava
    with prune(model, processor, question=["one", "two", "three"]), pytest.raises(ModelError, match="3 questions"):
        model.generate(**ask(processor, 1, 2), max_new_tokens=1)


def test_accelerated_attention_is_the_same():
    model, processor = shared_llava("eager")
    inputs = ask(processor, 1, 2)
    with prune(model, processor, "original"):
        eager = model.generate(**inputs, max_new_tokens=6)
    model, processor = shared_llava("sdpa")
    with prune(model, processor, "original"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6), eager)
