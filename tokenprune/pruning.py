"""Prune the visual tokens of a loaded model in a ``with`` block.

While a block is open, the model has a wrapper around its ``generate`` and hooks around its forward. Both look for a
block in the context that they run in, so that threads do not meet. They go when the last block on the model closes.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.known import adapter_for
from tokenprune.adapters.stopwatch import now
from tokenprune.block import Block, Run
from tokenprune.budget import Budget
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner, create_pruner
from tokenprune.trace import Trace

__all__ = ["Trace", "prune"]


@contextmanager
def prune(
    model: Any,
    processor: Any,
    pruner: str | Pruner | Sequence[str | Mapping[str, Any] | Pruner],
    *,
    keep_tokens: int | None = None,
    keep_ratio: float | None = None,
    average_tokens: float | None = None,
    flops: float | None = None,
    text_tokens: int = 0,
    text_tower: str | None = None,
    scope: str | None = None,
    question: str | Sequence[str] | None = None,
    **options: Any,
) -> Iterator[Trace]:
    """Prune what ``model.generate(**inputs)`` and ``model(**inputs)`` are given in this block and thread.

    Sequences that ``generate`` returns begin with the caller's prompt, as ever; logits of a forward are those of the
    shortened prompt. Blocks nest, and the innermost applies alone. A cache must be continued in the block that made it.

    Args:
        model: of a family that an adapter knows.
        processor: that belongs to it.
        pruner: a registered name, or a pruner, or a list of them for stages that follow one another, see ``Compose``.
        keep_tokens: visual tokens that stay, for each image; or
        keep_ratio: which share of them, in (0, 1]; or
        average_tokens: visual tokens in a layer of the LLM, mean over its layers; or
        flops: most FLOPs of the decoder layers in prefill, for a prompt of one image and
        text_tokens: so many other tokens. None of the four if the pruner's options fix its budget.
        text_tower: see ``ModelAdapter``.
        scope: likewise.
        question: what relevance is measured against, one for all rows or one a row; None to read it off the prompts.
        **options: of the pruner, if it is given by name.

    Yields:
        The trace.

    Raises:
        TokenPruneError: if pruner, budget and model are not possible together.
    """
    if isinstance(pruner, Pruner) and options:
        raise ConfigError(f"the options {sorted(options)} go with a pruner's name, but the pruner is made already")
    if isinstance(pruner, str):
        chosen = create_pruner(pruner, **options)
    else:
        chosen = pruner if isinstance(pruner, Pruner) else create_pruner("compose", pruners=tuple(pruner), **options)
    budget = chosen.budget
    given: dict[str, Any] = {"keep_tokens": keep_tokens, "keep_ratio": keep_ratio}
    given |= {"average_tokens": average_tokens, "flops": flops}
    if budget is None:
        budget = Budget(**given, text_tokens=text_tokens)
    elif text_tokens or any(value is not None for value in given.values()):
        raise ConfigError(f"the pruner's options fix its budget ({budget}); leave out {', '.join(given)}")
    adapter = adapter_for(model, processor, text_tower=text_tower, scope=scope)
    adapter.check_pruner(chosen)
    adapter.check_budget(chosen, adapter.spec, budget)
    block = Block(adapter, chosen, budget, question)
    token = _BLOCKS.set((*_BLOCKS.get(), block))
    _install(model)
    try:
        yield block.trace
    finally:
        _uninstall(model)
        _BLOCKS.reset(token)


_BLOCKS: ContextVar[tuple[Block, ...]] = ContextVar("tokenprune_blocks", default=())
_RUN: ContextVar[Run | None] = ContextVar("tokenprune_run", default=None)
_LOCK = threading.Lock()
_INSTALLED: WeakKeyDictionary[Any, tuple[int, Callable[[], None]]] = WeakKeyDictionary()


def _block_of(model: Any) -> Block | None:
    return next((block for block in reversed(_BLOCKS.get()) if block.adapter.model is model), None)


def _install(model: Any) -> None:
    with _LOCK:
        blocks, undo = _INSTALLED.get(model) or (0, _attach(model))
        _INSTALLED[model] = (blocks + 1, undo)


def _uninstall(model: Any) -> None:
    with _LOCK:
        blocks, undo = _INSTALLED.pop(model)
        if blocks == 1:
            undo()
        else:
            _INSTALLED[model] = (blocks - 1, undo)


def _attach(model: Any) -> Callable[[], None]:
    """Put wrapper and hooks on a model; returns what takes them off."""
    original, own = model.generate, "generate" in vars(model)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        block, run = _block_of(model), _RUN.get()
        if block is None or (run is not None and run.block is block):
            return original(*args, **kwargs)
        arguments = _named(original, args, kwargs)
        if "inputs" in arguments:
            arguments["input_ids"] = arguments.pop("inputs")
        with torch.no_grad():
            run = block.rewrite(arguments, generating=True)
        if run is None:
            return original(**arguments)
        token = _RUN.set(run)
        try:
            return block.generate(original, run, arguments["input_ids"])
        finally:
            _RUN.reset(token)

    model.generate = generate
    before = model.register_forward_pre_hook(_before, with_kwargs=True)
    after = model.register_forward_hook(_after, with_kwargs=True, always_call=True)

    def undo() -> None:
        before.remove()
        after.remove()
        if own:
            model.generate = original
        else:
            del model.generate

    return undo


def _before(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: a call by the user is pruned; one by ``generate``, whose inputs are pruned, is only timed.

    Torch leaves out the keyword arguments if another thread is removing the hook, as the last block there closes.
    """
    block, run = _block_of(model), _RUN.get()
    if block is None or kwargs is None or torch.compiler.is_compiling():
        return None
    if run is None or run.block is not block:
        run = block.rewrite(_named(model.forward, args, kwargs), generating=False)
        if run is None:
            return None
        run.token, args, kwargs = _RUN.set(run), (), run.arguments
        if run.inside is not None:
            run.inside.__enter__()
    if all(kwargs.get(name) is None for name in ("attention_mask", CACHE)):
        # Without a mask and a cache, transformers takes gaps in the position ids for packed prompts.
        kwargs = {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}
    if run.waiting > 0:
        run.started = now(model.device)
    return args, kwargs


def _after(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
    """Forward hook; ``output`` is None if the forward failed."""
    run = _RUN.get()
    if run is None or torch.compiler.is_compiling() or run.block is not _block_of(model):
        return
    if output is not None and run.waiting > 0:
        run.prefilled(kwargs["input_ids"].shape[1], now(model.device) - run.started)
    if run.token is not None:
        if run.inside is not None:
            run.inside.__exit__()
        _RUN.reset(run.token)
        if output is not None:
            run.finish(cache_of(output))


def _named(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without those that are None."""
    named = dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs
    return {name: value for name, value in named.items() if value is not None}
