"""One turn: a batch from pixels to its last token, with the time of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.sample import Sample
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.costs.memory import kv_cache_bytes_by_layer, peak_bytes
from tokenprune.engine.prompt.run import Ran
from tokenprune.engine.prompt.shorten import PrunedInputs
from tokenprune.engine.session import Session
from tokenprune.engine.stopwatch import now
from tokenprune.engine.token_clock import TokenClock
from tokenprune.engine.trace import stage_traces
from tokenprune.sweeps.build import Cell


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts.

    Attributes:
        inputs: of the model.
        questions: of each prompt.
        samples: that the batch was made of; None for noise.
    """

    inputs: Mapping[str, Any]
    questions: Sequence[str]
    samples: Sequence[Sample] | None = None


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn of a batch, by stage.

    Attributes:
        vision: vision tower, and projector.
        selection: choosing visual tokens, before the LLM and inside it.
        prefill: the LLM on the whole prompt, without the selections in it.
        token: one step of decoding, mean.
        total: all of it, to the last token.
    """

    vision: float
    selection: float
    prefill: float
    token: float
    total: float


def turn(session: Session, prompts: Prompts, cell: Cell, new_tokens: int) -> Turn:
    """Run a batch once, from pixels to its last token.

    Args:
        session: with the model.
        prompts: the batch.
        cell: what prunes.
        new_tokens: to generate for each prompt; the end of an answer does not end it.
    """
    device = session.adapter.device
    clock, start = TokenClock(device), now(device)
    pruned = _prune(session, prompts, cell)
    encoded = now(device)
    ran = session.generate(pruned, max_new_tokens=new_tokens, min_new_tokens=new_tokens, streamer=clock)
    _, first, *_, last = clock.times
    return Turn(
        vision=pruned.seconds["vision"],
        selection=pruned.seconds["selection"] + ran.seconds,
        prefill=first - encoded - ran.seconds,
        token=(last - first) / (new_tokens - 1),
        total=now(device) - start,
    )


@dataclass(frozen=True)
class Size:
    """What a batch takes besides time, at the end of its prefill.

    Attributes:
        tokens: live tokens of a prompt after the last stage, mean.
        prefill_flops: FLOPs of the LLM, for all prompts.
        cache_bytes: bytes of keys and values, for all prompts.
        peak_bytes: the most bytes that were allocated at a time, from pixels to the first token; on a CPU without the
            weights.
    """

    tokens: float
    prefill_flops: int
    cache_bytes: int
    peak_bytes: int


def size(session: Session, prompts: Prompts, cell: Cell) -> Size:
    """Run a prefill and measure what it takes besides time."""
    done: list[tuple[PrunedInputs, Ran[Any]]] = []

    def work() -> None:
        pruned = _prune(session, prompts, cell)
        done.append((pruned, session.prefill(pruned)))

    adapter = session.adapter
    peak = peak_bytes(work, adapter.device)
    pruned, ran = done[0]
    rows = len(prompts.questions)
    traces, totals = stage_traces(pruned, ran.stages, rows), pruned.layout.free_tokens()
    alive = [tuple(trace.counts[row] for trace in traces) for row in range(rows)]
    texts = (pruned.inputs["attention_mask"].sum(1) - torch.tensor(pruned.entered, device=adapter.device)).tolist()
    flops, live = 0, 0
    for each, total, text in zip(alive, totals, texts, strict=True):
        flops += llm_prefill_flops(adapter.spec, cell.pruner.plan(adapter.spec, each, total), text)
        live += each[-1] if each else total
    return Size(
        tokens=live / rows,
        prefill_flops=flops,
        cache_bytes=sum(kv_cache_bytes_by_layer(cache_of(ran.output))),
        peak_bytes=peak,
    )


@torch.no_grad()
def _prune(session: Session, prompts: Prompts, cell: Cell) -> PrunedInputs:
    return session.prune_inputs(prompts.inputs, cell.pruner, cell.budget, prompts.questions, samples=prompts.samples)
