"""What people do around ``tp.prune`` with a model, by kinds: each case works, or is refused in a sentence.

A case is run on a ``Subject``: a family's model and a pruner before or inside its LLM. ``docs/concepts.md`` has the
table of the cases, which ``test_block_contract`` makes of what happens.
"""

import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import pickle
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    DynamicCache,
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation import MaxLengthCriteria

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE
from tokenprune.testing.pruners import Within

KEEP, NEW = 4, 5
PLACES = ("before", "inside")


@dataclass
class Subject:
    """A model, its inputs and a pruner.

    Attributes:
        family: of the model.
        place: ``before`` or ``inside``.
        model, processor: shared by all cases, unless one asks for its own.
    """

    family: Any
    place: str
    model: Any
    processor: Any

    def own(self) -> "Subject":
        """With a model that a case may change."""
        return Subject(self.family, self.place, *self.family.make("sdpa"))

    def inputs(self, *rows: int, **how: Any) -> dict[str, Any]:
        asked = self.family.ask(self.processor, *(rows or (1,)), **how)
        asked.pop("labels", None)
        return asked

    def labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        """As in training: none for visual tokens."""
        visual = self.family.placeholder(self.model, inputs["input_ids"])
        return inputs["input_ids"].masked_fill(visual, -100)

    @property
    def pruner(self) -> Any:
        return (
            Within(positions="original")
            if self.place == "inside"
            else tp.create_pruner("uniform", positions="original")
        )

    def prune(self, model: Any = None, **how: Any) -> Any:
        return tp.prune(
            self.model if model is None else model, self.processor, self.pruner, **(how or {"keep_tokens": KEEP})
        )

    def attach(self, **how: Any) -> tp.Attached:
        return tp.attach(self.model, self.processor, self.pruner, **(how or {"keep_tokens": KEEP}))

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], model: Any = None) -> torch.Tensor:
        return (self.model if model is None else model)(**inputs).logits

    def pruned(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a forward, and what ``generate`` says, in a plain block."""
        with self.prune():
            return self.logits(inputs), self.model.generate(**inputs, max_new_tokens=NEW)


@dataclass(frozen=True)
class Case:
    """One thing that people do.

    Attributes:
        kind: of the table.
        what: a row of the table.
        check: asserts that it is right; where it is refused, ends in that ModelError.
        before, inside: what the refusal says, a regular expression; None where it works.
        some: whether it is slow, and runs for one family of each kind of position ids alone.
        others: families that refuse it, and how.
    """

    kind: str
    what: str
    check: Callable[[Subject], None]
    before: str | None = None
    inside: str | None = None
    some: bool = False
    others: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, place: str, family: str = "") -> str | None:
        return self.others.get(family, self.inside if place == "inside" else self.before)


CASES: list[Case] = []


def case(kind: str, what: str, **how: Any) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    def note(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CASES.append(Case(kind, what, check, **how))
        return check

    return note


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert torch.equal(a, b)


# Arguments

ARGUMENTS = "arguments"
PACKED = "a row holds several prompts"
EMBEDS = "inputs_embeds do not tell where the images are"


@case(ARGUMENTS, "`None` for any argument, such as `eos_token_id=None`")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    length = x["input_ids"].shape[1]
    how: dict[str, Any] = {
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
        "output_scores": None,
        CACHE: None,
    }
    s.model.generation_config.eos_token_id = int(s.model.generate(**x, max_new_tokens=3)[0, length + 1])
    plain, logits = s.model.generate(**x, **how), s.logits({**x, "labels": None, "position_ids": None})
    assert plain.shape[1] == length + 8
    with s.prune(keep_ratio=1.0):
        same(s.model.generate(**x, **how, position_ids=None), plain)
        same(s.logits({**x, "labels": None, "position_ids": None}), logits)


@case(ARGUMENTS, "arguments by position")
def _(s: Subject) -> None:
    x = s.inputs()
    ids, rest = x["input_ids"], {name: value for name, value in x.items() if name != "input_ids"}
    logits, said = s.pruned(x)
    with s.prune(), torch.no_grad():
        same(s.model.generate(ids, **rest, max_new_tokens=NEW), said)
        same(s.model(ids, **rest).logits, logits)


@case(ARGUMENTS, "position ids of any shape that the model takes")
def _(s: Subject) -> None:
    x = s.inputs(1, 1, side="right")
    length = x["input_ids"].shape[1]
    flat = torch.arange(length)[None]
    shapes = [flat, flat.expand(2, -1), flat + 5]
    if s.family.placeholder and hasattr(s.model.base_model, "get_rope_index"):
        shapes += [flat.expand(3, 2, -1), flat.expand(4, 2, -1), flat[None].expand(3, 1, -1)]
    for positions in shapes:
        given = {**x, "position_ids": positions}
        real = x["attention_mask"].bool()  # what comes out of padding means nothing
        plain = s.logits(given)[real]
        with s.prune(keep_ratio=1.0):
            same(s.logits(given)[real], plain)
        with s.prune() as trace:
            s.logits(given)
        assert len(trace.calls) == 1


@case(ARGUMENTS, "lists and arrays where the model takes them")
def _(s: Subject) -> None:
    x = s.inputs(1, 1)
    logits, _ = s.pruned(x)
    for name, value in x.items():
        for form in (value.tolist(), value.numpy(), list(value)):
            try:
                s.logits({**x, name: form})
            except Exception:
                continue
            with s.prune():
                same(s.logits({**x, name: form}), logits)


@case(ARGUMENTS, "`logits_to_keep`: a number, or indices of the caller's columns")
def _(s: Subject) -> None:
    x = s.inputs()
    length = x["input_ids"].shape[1]
    visual = s.family.placeholder(s.model, x["input_ids"])[0].nonzero()[:, 0]
    with s.prune() as trace:
        whole = s.logits(x)
        last = whole.shape[1] - 1
        for wanted, places in (
            (3, [last - 2, last - 1, last]),
            (torch.tensor([length - 3, length - 1]), [last - 2, last]),
            (torch.tensor([-1, -2]), [last, last - 1]),
            ([length - 2], [last - 1]),
            (np.array([length - 1]), [last]),
            (slice(length - 2, None), [last - 1, last]),
        ):
            torch.testing.assert_close(s.logits({**x, "logits_to_keep": wanted}), whole[:, places])
        if s.place == "before" and trace.counts[0][0] > trace.counts[0][1]:
            kept = set(trace.stages[0].keep[0])
            gone = next(int(at) for number, at in enumerate(visual) if number not in kept)
            with contextlib.suppress(tp.TokenPruneError):  # a token that no pruner may drop
                assert s.logits({**x, "logits_to_keep": torch.tensor([gone])}).shape[1] == 1


@case(ARGUMENTS, "a tokenizer without a pad token")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    logits, said = s.pruned(x)
    s.processor = copy.deepcopy(s.processor)
    s.processor.tokenizer.pad_token = None
    with s.prune():
        same(s.model.generate(**x, max_new_tokens=NEW), said)
        same(s.logits(x), logits)


@case(ARGUMENTS, "several prompts in a row (packed, padding-free)", before=PACKED, inside=PACKED)
def _(s: Subject) -> None:
    x = s.inputs()
    x.pop("attention_mask", None)
    length = x["input_ids"].shape[1]
    packed = torch.arange(length) % (length // 2)
    axes = 4 if hasattr(s.model.base_model, "get_rope_index") else 1
    positions = packed.expand(4, 1, -1) if axes == 4 else packed[None]
    with s.prune(), torch.no_grad():
        s.model(**x, position_ids=positions, use_cache=False)


@case(ARGUMENTS, "`inputs_embeds`", before=EMBEDS, inside=EMBEDS)
def _(s: Subject) -> None:
    x = s.inputs()
    embeds = s.model.get_input_embeddings()(x.pop("input_ids"))
    with s.prune(), torch.no_grad():
        s.model(**x, inputs_embeds=embeds)


@case(ARGUMENTS, "answers padded on the right behind prompts padded on the left: columns count from the end")
def _(s: Subject) -> None:
    if "paligemma" in type(s.family).__module__:
        return  # its prompts have no answers behind them
    x = s.inputs(1, 1)
    ids, mask, extra = x["input_ids"], x["attention_mask"], torch.tensor([[9, 10, 11], [9, 0, 0]])
    longer = {name: value for name, value in x.items() if name not in ("mm_token_type_ids", "token_type_ids")}
    longer |= {
        name: torch.nn.functional.pad(x[name], (0, 3)) for name in ("mm_token_type_ids", "token_type_ids") if name in x
    }
    longer["input_ids"] = torch.cat([ids, extra], 1)
    longer["attention_mask"] = torch.cat([mask, (extra != 0).long()], 1)
    with s.prune():
        last = s.logits({**longer, "logits_to_keep": 3})
        for row in range(2):
            alone = s.family.ask(s.processor, 1, 1, only=row)
            real = extra[row][extra[row] != 0]
            whole = {**alone, "input_ids": torch.cat([alone["input_ids"], real[None]], 1)}
            for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if name in alone:
                    whole[name] = torch.nn.functional.pad(
                        alone[name], (0, len(real)), value=int(name == "attention_mask")
                    )
            wanted = s.logits(whole)[0, -len(real) :]
            torch.testing.assert_close(last[row, : len(real)], wanted, atol=1e-4, rtol=0)


# What generate calls back


class Seeing(LogitsProcessor, StoppingCriteria):
    """Notes which ids it is shown, and stops after so many new ones; it is both a processor and a criterion."""

    def __init__(self, stop: int) -> None:
        self.seen: list[torch.Tensor] = []
        self.stop = stop

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.seen.append(ids.clone())
        return scores


class Criterion(StoppingCriteria):
    def __init__(self, longest: int) -> None:
        self.longest, self.seen = longest, []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.seen.append(ids.clone())
        return torch.full((len(ids),), ids.shape[1] >= self.longest)


CALLBACKS = "what `generate` calls back"


@case(CALLBACKS, "stopping criteria, logits processors, `prefix_allowed_tokens_fn`: they see the caller's prompt")
def _(s: Subject) -> None:
    x = s.inputs(1, 2)
    ids, length = x["input_ids"], x["input_ids"].shape[1]
    for how in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        processor, criterion, rows = Seeing(0), Criterion(length + 3), []

        def allowed(row: int, tokens: torch.Tensor, rows: Any = rows) -> list[int]:
            rows.append((row, tokens.clone()))
            return [9] if len(tokens) == length else [10, 11]

        with s.prune():
            called = {"logits_processor": [processor], "stopping_criteria": [criterion]}
            out = s.model.generate(**x, **called, prefix_allowed_tokens_fn=allowed, max_new_tokens=8, **how)
        assert out.shape[1] == length + 3
        assert (out[:, length] == 9).all()
        for seen in (*processor.seen, *criterion.seen):
            same(seen[:, :length], ids.repeat_interleave(len(seen) // 2, 0))
        copies = len(processor.seen[0]) // 2
        for row, tokens in rows:
            same(tokens[:length], ids[row // (copies if "do_sample" in how else 1)])


@case(CALLBACKS, "transformers' own criteria")
def _(s: Subject) -> None:
    x = s.inputs()
    longest = x["input_ids"].shape[1] + 3
    own = [MaxLengthCriteria(max_length=longest)]
    with s.prune():
        assert s.model.generate(**x, max_new_tokens=20, stopping_criteria=own).shape[1] == longest


@case(CALLBACKS, "callbacks in lists, and functions in transformers' own processors")
def _(s: Subject) -> None:
    x, seen = s.inputs(), []
    length = x["input_ids"].shape[1]

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        seen.append(len(ids))
        return [9, 10]

    criterion = Criterion(length + 2)
    with s.prune():
        nested = {"stopping_criteria": [StoppingCriteriaList([criterion])]}
        own = PrefixConstrainedLogitsProcessor(allowed, num_beams=1)
        out = s.model.generate(**x, max_new_tokens=6, logits_processor=[own], **nested)
    assert out.shape[1] == length + 2
    assert seen == [length, length + 1]


@case(CALLBACKS, "callbacks that ask the model about another picture or text, as contrastive decoding and guidance do")
def _(s: Subject) -> None:
    s = s.own()  # Qwen's models remember something of their last prompt, which guidance reads
    x, y = s.inputs(), s.inputs(seed=7)
    text = {"input_ids": y["input_ids"][:, -9:].repeat(1, 8)[:, : 2 * x["input_ids"].shape[1]]}
    text = {name: value.masked_fill(s.family.placeholder(s.model, value), 9) for name, value in text.items()}
    bare, wanted, said = s.logits(text), s.pruned(y)[0], s.pruned(x)[1]
    found = []

    class Asking(LogitsProcessor):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            found.append((s.logits(y), s.logits(text), s.logits({**text, "use_cache": False})))
            return scores

    with s.prune() as trace:
        same(s.model.generate(**x, max_new_tokens=NEW, logits_processor=[Asking()]), said)
        guided = s.model.generate(**x, max_new_tokens=NEW, guidance_scale=1.5)
    assert len(found) == NEW
    for other, words, again in found:
        same(other, wanted)
        same(words, bare)
        same(again, bare)
    assert len(trace.calls) == NEW + 2
    assert guided.shape == said.shape


@case(CALLBACKS, "streamers: the caller's prompt comes first")
def _(s: Subject) -> None:
    x, put = s.inputs(), []

    class Noting:
        def put(self, value: torch.Tensor) -> None:
            put.append(value.flatten())

        def end(self) -> None:
            put.append(torch.tensor([-1]))

    with s.prune():
        out = s.model.generate(**x, max_new_tokens=NEW, streamer=Noting())
    same(put[0], x["input_ids"][0])
    same(torch.cat(put)[:-1], out[0])


# How a block ends, and whom it belongs to

BLOCKS = "blocks, threads and contexts"


def left_on(model: Any) -> list[Any]:
    kinds = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return [
        (type(module), [len(getattr(module, kind)) for kind in kinds], sorted(vars(module)))
        for module in model.modules()
    ]


@case(BLOCKS, "`KeyboardInterrupt`, `SystemExit`, `GeneratorExit` in a call")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, (logits, said), before = s.logits(x), s.pruned(x), left_on(s.model)
    for error in (KeyboardInterrupt, SystemExit, GeneratorExit):

        def interrupt(*_: Any, error: Any = error) -> None:
            raise error

        for module in (s.model.lm_head, s.model.get_decoder().layers[-1].mlp):
            with s.prune():
                handle = module.register_forward_pre_hook(interrupt)
                for call in (lambda: s.logits(x), lambda: s.model.generate(**x, max_new_tokens=2)):
                    with pytest.raises(error):
                        call()
                handle.remove()
                same(s.logits(x), logits)
                same(s.model.generate(**x, max_new_tokens=NEW), said)
            assert left_on(s.model) == before
            same(s.logits(x), plain)


@case(BLOCKS, "blocks of one thread that close in any order")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, before = s.logits(x), left_on(s.model)
    few = s.pruned(x)[0]
    first, second = s.prune(), s.prune(keep_ratio=1.0)
    first.__enter__()
    second.__enter__()
    same(s.logits(x), plain)
    first.__exit__(None, None, None)
    same(s.logits(x), plain)
    third = s.prune()
    third.__enter__()
    second.__exit__(None, None, None)
    same(s.logits(x), few)
    third.__exit__(None, None, None)
    same(s.logits(x), plain)
    assert left_on(s.model) == before


@case(BLOCKS, "a method that was read in a block, called after it")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, said = s.logits(x), s.model.generate(**x, max_new_tokens=NEW)
    with s.prune():
        forward, generate = s.model.forward, s.model.generate
    with torch.no_grad():
        same(forward(**x).logits, plain)
    same(generate(**x, max_new_tokens=NEW), said)


@case(BLOCKS, "a generator with the block in it, driven in copied contexts, other threads, or dropped")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, before, few = s.logits(x), left_on(s.model), s.pruned(x)[0]

    def stream(keep: int) -> Any:
        with s.prune(keep_tokens=keep) as trace:
            for number in range(3):
                yield s.logits(x), number + 1, trace

    a, b = stream(KEEP), stream(KEEP - 1)
    others = []
    for _ in range(3):
        logits, number, trace = contextvars.copy_context().run(next, a)
        same(logits, few)
        assert len(trace.calls) == number
        with ThreadPoolExecutor(1) as pool:
            others.append(pool.submit(next, b).result()[0])
    assert all(torch.equal(other, others[0]) for other in others)
    assert next(a, None) is None
    del b
    assert left_on(s.model) == before
    same(s.logits(x), plain)


@case(BLOCKS, "two generators with blocks that take turns; a user's own context manager around a block")
def _(s: Subject) -> None:
    x = s.inputs()
    few, fewer = s.pruned(x)[0], None
    with s.prune(keep_tokens=KEEP - 1):
        fewer = s.logits(x)

    @contextlib.contextmanager
    def own(keep: int) -> Any:
        with s.prune(keep_tokens=keep) as trace:
            yield trace

    def stream(open_block: Any, keep: int) -> Any:
        with open_block(keep_tokens=keep) if open_block == s.prune else open_block(keep):
            for _ in range(3):
                yield s.logits(x)

    for way in (s.prune, own):
        a, b = stream(way, KEEP), stream(way, KEEP - 1)
        for _ in range(3):
            same(next(a), few)
            same(contextvars.copy_context().run(next, b), fewer)
        assert list(a) == list(b) == []


@case(BLOCKS, "as a decorator of a function")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, few = s.logits(x), s.pruned(x)[0]

    @s.prune()
    def ask(times: int) -> torch.Tensor:
        return s.logits(x) if times == 0 else ask(times - 1)

    same(ask(2), few)
    same(s.logits(x), plain)


@case(
    BLOCKS, "as a decorator of a generator or coroutine", before="open the block in it", inside="open the block in it"
)
def _(s: Subject) -> None:
    @s.prune()
    async def ask() -> None:
        """Never called."""


@case(BLOCKS, "contexts that are copied during a call, for later calls")
def _(s: Subject) -> None:
    x, contexts = s.inputs(), []
    few = s.pruned(x)[0]

    class Copying(LogitsProcessor):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            contexts.append(contextvars.copy_context())
            return scores

    with s.prune() as trace:
        s.model.generate(**x, max_new_tokens=2, logits_processor=[Copying()])
        for context in contexts:
            same(context.run(s.logits, x), few)
    assert len(trace.calls) == 3
    if "paligemma" in type(s.family).__module__:
        return  # it answers one prompt
    contexts.clear()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=2, logits_processor=[Copying()], return_dict_in_generate=True)
        second = {**follow(x, first.sequences), "max_new_tokens": 2}
        later = [copy.deepcopy(cache_of(first)) for _ in range(2)]
        wanted = s.model.generate(**second, **{CACHE: later[0]})
        same(contexts[0].run(lambda: s.model.generate(**second, **{CACHE: later[1]})), wanted)


@case(BLOCKS, "nothing keeps a model alive afterwards: no handle, context or cache of it")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    alive = weakref.ref(s.model)
    with s.prune():
        kept = contextvars.copy_context(), s.model.generate(**x, max_new_tokens=2, return_dict_in_generate=True)
    handle = s.attach()
    s.logits(x)
    handle.remove()
    del s
    gc.collect()
    assert alive() is None
    assert kept


@case(BLOCKS, "a thread or an executor that is given `model.generate`, as streamers are used")
def _(s: Subject) -> None:
    x = s.inputs()
    said = s.pruned(x)[1]
    streamer = TextIteratorStreamer(s.processor.tokenizer, skip_prompt=True, timeout=60)
    with s.prune() as trace:
        how = {**x, "max_new_tokens": NEW, "streamer": streamer}
        thread = threading.Thread(target=s.model.generate, kwargs=how)
        thread.start()
        text = "".join(streamer)
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            same(pool.submit(s.model.generate, **x, max_new_tokens=NEW).result(), said)
    assert len(trace.calls) == 2
    assert text == s.processor.tokenizer.decode(said[0, x["input_ids"].shape[1] :])


@case(BLOCKS, "any other call of another thread or context: unpruned, with an `UnprunedWarning`")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, said = s.logits(x), s.model.generate(**x, max_new_tokens=NEW)
    with s.prune() as trace, warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        same(pool.submit(s.logits, x).result(), plain)
        same(pool.submit(lambda: s.model.generate(**x, max_new_tokens=NEW)).result(), said)
        assert [warning.category for warning in told] == [tp.UnprunedWarning] * 2
        told.clear()

        def meant() -> torch.Tensor:
            with tp.prune(s.model, s.processor, None):
                return s.logits(x)

        same(pool.submit(meant).result(), plain)
        assert not told
    assert trace.calls == []


@case(BLOCKS, "tasks of asyncio, each with its own block")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, few = s.logits(x), s.pruned(x)[0]

    async def ask(keep: dict[str, Any]) -> torch.Tensor:
        with s.prune(**keep):
            await asyncio.sleep(0)
            there = await asyncio.to_thread(s.logits, x)
            same(there, s.logits(x))
            return there

    async def both() -> list[torch.Tensor]:
        return await asyncio.gather(ask({"keep_tokens": KEEP}), ask({"keep_ratio": 1.0}))

    a, b = asyncio.run(both())
    same(a, few)
    same(b, plain)


@case(BLOCKS, "`tp.attach`: every thread, until it is removed")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, before, (logits, said) = s.logits(x), left_on(s.model), s.pruned(x)
    handle = s.attach()
    same(s.logits(x), logits)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lambda: s.model.generate(**x, max_new_tokens=NEW)) for _ in range(4)]:
            same(done.result(), said)
        same(pool.submit(s.logits, x).result(), logits)
        with s.prune(keep_ratio=1.0):  # a block of one's own comes first
            same(s.logits(x), plain)
    assert len(handle.trace.calls) == 6
    handle.remove()
    handle.remove()
    assert left_on(s.model) == before
    same(s.logits(x), plain)


# Caches

CACHES = "caches"
CHANGED = "does not hold the prompt any more that was pruned into it"
OTHER = "was not filled in this block"


def follow(x: dict[str, Any], sequences: torch.Tensor) -> dict[str, Any]:
    """The next turn: the conversation so far and three words more."""
    more = sequences[:, -3:]
    ids = torch.cat([sequences, more], 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in x:
            given[name] = torch.nn.functional.pad(x[name], (0, ids.shape[1] - x[name].shape[1]))
    return given


ONE_TURN = {"paligemma": "PaliGemma answers one prompt; a later turn on its cache cannot be pruned"}


@case(CACHES, "a copy of a cache, also one that was made of its tensors", others=ONE_TURN)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        cache, second = cache_of(first), follow(x, first.sequences)
        copies = [copy.deepcopy(cache), pickled(cache)]
        said = s.model.generate(**second, **{CACHE: cache}, max_new_tokens=NEW)
        for other in copies:
            same(s.model.generate(**second, **{CACHE: other}, max_new_tokens=NEW), said)


@case(
    CACHES,
    "a cache of a turn without images, the image in the next; where images have any number of tokens, it is refused",
    inside="the whole prompt in one forward",
    others={
        "paligemma": "the prompt has image placeholders, and no image is given",
        **({} if HOOKS_RUN_ONCE else {"gemma3": "this version of transformers masks images of a later turn wrongly"}),
    },
)
def _(s: Subject) -> None:
    x = s.inputs()
    ids = x["input_ids"]
    hello = ids[:, :1].repeat(1, 1)
    words = s.processor.tokenizer("on the left", add_special_tokens=False, return_tensors="pt").input_ids
    first = torch.cat([hello, words], 1)
    whole = {**x, "input_ids": torch.cat([first, ids[:, 1:]], 1)}
    more = whole["input_ids"].shape[1] - ids.shape[1]
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in x:
            whole[name] = torch.nn.functional.pad(x[name], (more, 0), value=int(name == "attention_mask"))
    with s.prune(), torch.no_grad():
        wanted = s.model.generate(**whole, max_new_tokens=NEW)
        cache = cache_of(s.model(first, use_cache=True))
        try:
            found = s.model.generate(**whole, **{CACHE: cache}, max_new_tokens=NEW)
        except tp.TokenPruneError as error:
            # Where images have any number of tokens, later turns bring none.
            if s.place == "before" and "whose number of tokens varies" in str(error):
                return
            if "whose number of tokens varies" in str(error):
                raise tp.TokenPruneError("the whole prompt in one forward") from error
            raise
    same(found, wanted)


def pickled(cache: Any) -> Any:
    """A cache of the same content that knows nothing of the first."""
    made = DynamicCache()
    for index, layer in enumerate(cache.layers):
        made.update(layer.keys.clone(), layer.values.clone(), index)
    return made


@case(CACHES, "threads that go on with copies of one cache", others=ONE_TURN)
def _(s: Subject) -> None:
    x, before = s.inputs(), left_on(s.model)
    handle = s.attach()
    try:
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        second = follow(x, first.sequences)
        copies = [copy.deepcopy(cache_of(first)) for _ in range(5)]
        how = {"max_new_tokens": NEW}
        wanted = s.model.generate(**second, **{CACHE: copies.pop()}, **how)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(s.model.generate, **second, **{CACHE: cache}, **how) for cache in copies]:
                same(done.result(), wanted)
    finally:
        handle.remove()
    assert left_on(s.model) == before


@case(CACHES, "a cache that a forward filled, with `return_dict=False` too", others=ONE_TURN)
def _(s: Subject) -> None:
    x, found = s.inputs(), []
    token = torch.tensor([[9]])
    for how in ({}, {"return_dict": False}):
        with s.prune(), torch.no_grad():
            cache = DynamicCache(config=s.model.config.get_text_config())
            s.model(**x, **{CACHE: cache}, **how)
            found.append(s.model(input_ids=token, **{CACHE: cache}).logits)
    same(*found)


PRUNED = "holds a pruned prompt"


@case(CACHES, "a pruned cache in a block without a pruner", before=PRUNED, inside=PRUNED)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        with tp.prune(s.model, s.processor, None):
            s.model.generate(**follow(x, first.sequences), **{CACHE: cache_of(first)}, max_new_tokens=NEW)


@case(CACHES, "a cache that was emptied, for the next prompt")
def _(s: Subject) -> None:
    x, y = s.inputs(), s.inputs(seed=3)
    text = s.model.config.get_text_config()
    cache = StaticCache(config=text, max_cache_len=400)
    sliding = any(type(layer).__name__ != "StaticLayer" for layer in cache.layers)
    with s.prune():
        wanted = s.model.generate(**y, max_new_tokens=NEW)
        if sliding and s.place == "inside":
            return  # static caches with sliding windows are refused there
        s.model.generate(**x, max_new_tokens=2, **{CACHE: cache})
        cache.reset()
        same(s.model.generate(**y, max_new_tokens=NEW, **{CACHE: cache}), wanted)


@case(CACHES, "a cache of which rows were chosen", before=CHANGED, inside=CHANGED)
def _(s: Subject) -> None:
    x = s.inputs(1, 1)
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        cache, second = cache_of(first), follow(x, first.sequences)
        cache.batch_select_indices(torch.tensor([1, 0]))
        s.model.generate(**second, **{CACHE: cache}, max_new_tokens=NEW)


@case(CACHES, "a cache of another block", before=OTHER, inside=OTHER)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
    with s.prune():
        s.model.generate(**follow(x, first.sequences), **{CACHE: cache_of(first)}, max_new_tokens=NEW)


# Around the model

AROUND = "around the model"
TUNED = "the prompt reaches the model as embeddings or through a cache"


@case(AROUND, "a copy (`deepcopy`, pickle) that is made in a block is a model of its own")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    with s.prune():
        copies = [copy.deepcopy(s.model), pickle.loads(pickle.dumps(s.model))]
        assert type(copy.copy(s.model)) is type(copies[0])
        with tp.prune(s.model, s.processor, None):
            plain = s.logits(x)
        for other in copies:
            assert type(other) is type(s.family.build("sdpa")[0])
            same(s.logits(x, other), plain)
    for other in copies:
        assert left_on(other)[0] == left_on(s.model)[0]
        with s.prune(other) as trace:
            s.logits(x, other)
        assert len(trace.calls) == 1


@case(AROUND, "a headless model (`AutoModel`)")
def _(s: Subject) -> None:
    x, bare = s.inputs(), s.model.base_model
    with torch.no_grad():
        plain = bare(**x).last_hidden_state
        with s.prune(bare, keep_ratio=1.0):
            same(bare(**x).last_hidden_state, plain)
        with s.prune(bare), s.prune():
            hidden = bare(**x).last_hidden_state
        torch.testing.assert_close(s.model.lm_head(hidden[:, -1]), s.pruned(x)[0][:, -1])


@case(AROUND, "PEFT: LoRA")
def _(s: Subject) -> None:
    from peft import LoraConfig, get_peft_model

    s, x = s.own(), s.inputs()
    logits, said = s.pruned(x)
    lora = LoraConfig(r=2, target_modules=r".*(q_proj|v_proj)", task_type="CAUSAL_LM")
    tuned = get_peft_model(s.model, lora).eval()  # which adds nothing before it is trained
    for model in (tuned, s.model):
        with s.prune(model) as trace:
            torch.testing.assert_close(s.logits(x, tuned), logits)
            same(tuned.generate(**x, max_new_tokens=NEW), said)
        assert len(trace.calls) == 2


@case(AROUND, "PEFT: prompt tuning", before=TUNED, inside=TUNED)
def _(s: Subject) -> None:
    from peft import PromptTuningConfig, get_peft_model

    s = s.own()
    tuned = get_peft_model(s.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with s.prune(tuned):
        tuned.generate(**s.inputs(), max_new_tokens=2)


@case(AROUND, "`torch.compile(model)`, before or in the block", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    compiled = torch.compile(s.model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(s.logits(x, compiled), plain)
        for model in (s.model, compiled):
            with s.prune(model) as trace:
                torch.testing.assert_close(s.logits(x, compiled), logits)
                same(compiled.generate(**x, max_new_tokens=NEW), said)
            assert len(trace.calls) == 2


@case(AROUND, "`model.compile()`, `model.forward = torch.compile(...)`", inside="compiled as a whole", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    s.model.compile(backend="eager")
    torch.testing.assert_close(s.logits(x), plain)
    with s.prune() as trace:
        torch.testing.assert_close(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    assert len(trace.calls) == 2
    s.model._compiled_call_impl = None
    s.model.forward = torch.compile(s.model.forward, backend="eager")
    with s.prune():
        torch.testing.assert_close(s.logits(x), logits)


TRACED = "a model cannot be traced while it is pruned"


@case(AROUND, "`torch.jit.trace`", before=TRACED, inside=TRACED, some=True)
def _(s: Subject) -> None:
    x = s.inputs()
    names = list(x)
    with s.prune():
        torch.jit.trace(lambda *given: s.model(**dict(zip(names, given, strict=True))).logits, tuple(x.values()))


@case(AROUND, "layers compiled one by one", some=True)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    for layer in s.model.get_decoder().layers:
        layer.compile(backend="eager")
    torch.testing.assert_close(s.logits(x), plain)
    with s.prune():
        torch.testing.assert_close(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    torch.testing.assert_close(s.logits(x), plain)


@case(AROUND, "`model.forward` and `model.generate` replaced by wrappers, before or in the block")
def _(s: Subject) -> None:
    s, x, called = s.own(), s.inputs(), []
    logits, said = s.pruned(x)

    def wrapped(own: Any) -> Any:
        @functools.wraps(own)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            called.append(own)
            return own(*args, **kwargs)

        return wrapper

    s.model.forward = wrapped(s.model.forward)
    with s.prune() as trace:
        same(s.logits(x), logits)
        s.model.forward, s.model.generate = wrapped(s.model.forward), wrapped(s.model.generate)
        same(s.logits(x), logits)
        same(s.model.generate(**x, max_new_tokens=NEW), said)
    assert len(trace.calls) == 3
    assert len(called) == 1 + 2 + 1 + 2 * NEW
    del s.model.forward, s.model.generate
    with s.prune():
        same(s.logits(x), logits)


PAST = "the images go past what is pruned"


@case(AROUND, "`model.model(...)`, or a `forward` that was read before the block", before=PAST, inside=PAST)
def _(s: Subject) -> None:
    x, forward = s.inputs(), s.model.forward
    with s.prune(), torch.no_grad():
        with tp.prune(s.model, s.processor, None):
            forward(**x)
        with pytest.raises(tp.TokenPruneError, match=PAST):
            s.model.base_model(**x)
        forward(**x)


@case(AROUND, "`torch.autocast`: the model computes as without a block, pruners in float32")
def _(s: Subject) -> None:
    x = s.inputs()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            plain = s.logits(x)
            with s.prune(keep_ratio=1.0):
                same(s.logits(x), plain)
            with s.prune() as trace:
                s.model.generate(**x, max_new_tokens=2)
        assert len(trace.calls) == 1


@case(AROUND, "another default dtype")
def _(s: Subject) -> None:
    x = s.inputs()
    plain, (logits, said) = s.logits(x), s.pruned(x)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            bare = s.logits(x)
            found, answer = s.pruned(x)
        finally:
            torch.set_default_dtype(torch.float32)
        if torch.equal(bare, plain):  # some models give other logits by themselves
            same(found, logits)
            same(answer, said)


@case(AROUND, "parts on disk (`device_map`)", some=True)
def _(s: Subject) -> None:
    x = s.inputs()
    logits, said = s.pruned(x)
    parts = [name for name, _ in s.model.base_model.named_children()]
    with tempfile.TemporaryDirectory() as folder:
        s.model.save_pretrained(folder)
        for disk in parts:
            places = {f"model.{part}": "disk" if part == disk else "cpu" for part in parts} | {"lm_head": "cpu"}
            how = {"device_map": places, "offload_folder": f"{folder}/off", "dtype": s.model.dtype}
            off = type(s.model).from_pretrained(folder, **how).eval()
            off.generation_config.eos_token_id = None
            with s.prune(off):
                torch.testing.assert_close(s.logits(x, off), logits)
                same(off.generate(**x, max_new_tokens=NEW), said)


@case(AROUND, "a user's own hooks on the model and its layers")
def _(s: Subject) -> None:
    x, seen = s.inputs(), []
    layer = s.model.get_decoder().layers[3]
    handles = [
        s.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
        ),
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0])),
    ]
    try:
        with s.prune() as trace:
            s.logits(x)
    finally:
        for handle in handles:
            handle.remove()
    ids, before, after = seen
    same(ids, x["input_ids"])
    gone = trace.counts[0][0] - trace.counts[0][1]
    assert before.shape[1] == after.shape[1] == ids.shape[1] - gone


# Gradients

GRADIENTS = "gradients"


@case(GRADIENTS, "gradients in eval mode and in training, of pixels too")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    name = "pixel_values" if x.get("pixel_values") is not None else "pixel_values_videos"
    for mode in (s.model.eval(), s.model.train()):
        found = []
        for keep in (None, {"keep_ratio": 1.0}, {"keep_tokens": KEEP}):
            pixels = x[name].float().clone().requires_grad_()
            with s.prune(**keep) if keep else contextlib.nullcontext():
                mode(**{**x, name: pixels}, labels=s.labels(x), use_cache=False).loss.backward()
            found.append(pixels.grad)
        torch.testing.assert_close(found[1], found[0])
        assert found[2].abs().sum() > 0
        assert not torch.equal(found[2], found[0])
    with s.prune(), torch.no_grad():
        assert not s.model(**x).logits.requires_grad


OLD = None if HOOKS_RUN_ONCE else "gradient checkpointing"


@case(GRADIENTS, "gradient checkpointing, reentrant or not (inside the LLM: transformers >= 5.23)", inside=OLD)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    s.model.train()

    def gradient() -> torch.Tensor:
        s.model.zero_grad()
        with s.prune():
            s.model(**x, labels=s.labels(x), use_cache=False).loss.backward()
        return s.model.get_decoder().layers[0].self_attn.q_proj.weight.grad.clone()

    s.model.enable_input_require_grads()
    wanted = gradient()
    for reentrant in (False, True):
        s.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(gradient(), wanted)


WHOLE = "a model that is checkpointed as a whole"


@case(GRADIENTS, "`checkpoint(model, ...)` around the whole model; `tp.attach` works", before=WHOLE, inside=WHOLE)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()

    def gradient(way: Any) -> torch.Tensor:
        s.model.zero_grad()
        embeds = s.model.get_input_embeddings().weight

        def loss(_: torch.Tensor) -> torch.Tensor:
            return s.model(**x, labels=s.labels(x), use_cache=False).loss

        (loss(embeds) if way is None else checkpoint(loss, embeds, use_reentrant=way)).backward()
        return s.model.get_decoder().layers[0].self_attn.q_proj.weight.grad.clone()

    handle = s.attach()
    wanted = gradient(None)
    for reentrant in (False, True):
        torch.testing.assert_close(gradient(reentrant), wanted)
    handle.remove()
    with s.prune():
        gradient(True)


@case(
    GRADIENTS,
    "gradient checkpointing with operation pruning (`dop`)",
    inside="gradient checkpointing runs layers again",
)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    s.model.train()
    s.model.gradient_checkpointing_enable({"use_reentrant": False})
    base = {"pruner": "uniform", "positions": "original"}
    plan = {"pruner": "dop", "base": "uniform", "attention_depth": 2, "mlp_depth": 2} if s.place == "inside" else base
    with tp.prune(s.model, s.processor, **plan, keep_tokens=KEEP):
        s.model(**x, labels=s.labels(x), use_cache=False).loss.backward()


@case(GRADIENTS, "`Trainer`, also with `torch_compile=True`, by `tp.attach`", some=True)
def _(s: Subject) -> None:
    from transformers import Trainer, TrainingArguments

    s, x = s.own(), s.inputs()
    x = {**x, "labels": s.labels(x)}
    with s.prune():
        wanted = s.model.train()(**x, use_cache=False).loss.item()
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        with tempfile.TemporaryDirectory() as folder:
            how = {
                "use_cpu": True,
                "report_to": "none",
                "save_strategy": "no",
                "remove_unused_columns": False,
                **compiled,
            }
            options = TrainingArguments(folder, max_steps=1, learning_rate=0.0, disable_tqdm=True, **how)
            trainer = Trainer(s.model, options, train_dataset=[x], data_collator=lambda rows: rows[0])
            handle = s.attach()
            loss = trainer.train().training_loss
            handle.remove()
        assert len(handle.trace.calls) == 1
        assert loss == pytest.approx(wanted, abs=1e-5)
