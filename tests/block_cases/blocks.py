"""How a block ends, and whom it belongs to: threads, contexts, generators."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    TextIteratorStreamer,
)

import tokenprune as tp
from block_cases.base import KEEP, NEW, Subject, case, follow, left_on, same
from tokenprune.adapters.cache_argument import CACHE, cache_of

BLOCKS = "blocks, threads and contexts"


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
