"""A call of a model whose images are pruned, while it is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.core.errors import ModelError
from tokenprune.engine.attach.wrapped import EMBEDDED
from tokenprune.engine.decoder.hooks import InsideLLM, nothing_inside
from tokenprune.engine.prompt.shorten import PrunedInputs
from tokenprune.engine.stopwatch import now
from tokenprune.engine.turns import Turn

RUN: ContextVar[Run | None] = ContextVar("tokenprune_run", default=None)


def current_run() -> Run | None:
    """The run that is under way in this context."""
    run = RUN.get()
    return None if run is None or run.over else run


@dataclass(eq=False)
class Run:
    """A call of the model that is under way.

    Attributes:
        block: that it runs in.
        device: where the model's clock is read.
        arguments: what the model is given instead of the caller's arguments.
        pruned: for the trace; None if this call brings no images.
        images: (B,) long, images that this call brings in each row.
        turn: to be remembered with the cache; None if this call brings no images.
        inside: what prunes inside the LLM, now or when the cache was filled; None if nothing does.
        waiting: columns of the prompt that have not gone through the LLM.
        over: whether it has ended; a context that was copied meanwhile goes on with it.
        prefill_seconds: that the prompt took in the LLM, selections included.
    """

    block: object
    device: torch.device
    arguments: dict[str, Any]
    pruned: PrunedInputs | None = None
    images: Tensor | None = None
    turn: Turn | None = None
    inside: InsideLLM | None = None
    waiting: int = 0
    over: bool = False
    prefill_seconds: float = 0.0

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Calls of the model in this ``with`` block are parts of this run; it lies within one function."""
        token = RUN.set(self)
        try:
            with self.inside or nothing_inside():
                yield
        finally:
            self.over = True
            RUN.reset(token)

    def forward(self, original: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """A forward of the model over pruned inputs: some columns of the prompt, or new tokens.

        What a callback of ``generate`` asks the model meanwhile is none: nothing inside the LLM prunes it.
        """
        first = self.waiting and self.waiting == self.arguments["input_ids"].shape[1]
        if kwargs.get("input_ids") is None or (first and _grown(kwargs.get(CACHE), self.arguments.get(CACHE))):
            raise ModelError(EMBEDDED)
        if all(kwargs.get(name) is None for name in ("attention_mask", CACHE)):
            # Without a mask and a cache, transformers takes gaps in the position ids for packed prompts.
            kwargs = {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}
        if self.waiting <= 0:
            with nullcontext() if self.inside is None or self._continues(kwargs) else nothing_inside():
                return original(**kwargs)
        started = now(self.device)
        output = original(**kwargs)
        self.prefill_seconds += now(self.device) - started
        self.waiting -= kwargs["input_ids"].shape[1]
        return output

    def _continues(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a forward goes on with the prompt: on a cache that holds it, or with all of it."""
        ids, shown = kwargs["input_ids"], self.arguments["input_ids"]
        if kwargs.get(CACHE) is not None:
            return self.inside is not None and self.inside.knows(kwargs[CACHE])
        if ids.shape[1] < shown.shape[1] or len(ids) % len(shown):
            return False
        return torch.equal(ids[:, : shown.shape[1]], shown.repeat_interleave(len(ids) // len(shown), 0).to(ids.device))


def _grown(cache: Any, given: Any) -> bool:
    """Whether a prompt's first forward gets a cache that holds something, though the call came without one."""
    return cache is not None and given is None and bool(int(cache.get_seq_length()))
