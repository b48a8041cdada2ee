"""What an open ``tokenprune.prune`` block does with the calls of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.cache_argument import CACHE, renamed
from tokenprune.adapters.hooks import InsideLLM
from tokenprune.adapters.inputs import CHUNKS_WORK, PIXELS, PrunedInputs, without_pixels
from tokenprune.adapters.turns import COLUMNS, TYPES, Turn, new_images, split_at_cache
from tokenprune.budget import Budget
from tokenprune.errors import ModelError
from tokenprune.pruners.base import Pruner
from tokenprune.trace import PrunedCall, Trace, stage_traces


@dataclass(eq=False)
class Run:
    """A call of the model that is under way.

    Attributes:
        block: that it runs in.
        arguments: what the model is given instead of the caller's arguments.
        pruned: for the trace; None if this call brings no images.
        images: (B,) long, images that this call brings in each row.
        turn: to be remembered with the cache; None if this call brings no images.
        inside: what prunes inside the LLM, now or when the cache was filled; None if nothing does.
        waiting: columns of the prompt that have not gone through the LLM.
        started: when the forward that is under way began, seconds.
        token: to end the run with the forward that began it; None if ``generate`` began it.
    """

    block: Block
    arguments: dict[str, Any]
    pruned: PrunedInputs | None = None
    images: Tensor | None = None
    turn: Turn | None = None
    inside: InsideLLM | None = None
    waiting: int = 0
    started: float = 0.0
    token: Token[Run | None] | None = None

    def prefilled(self, columns: int, seconds: float) -> None:
        """Note a forward of the model over some columns of the prompt."""
        if self.pruned is not None:
            self.pruned.seconds["prefill"] = self.pruned.seconds.get("prefill", 0.0) + seconds
        self.waiting -= columns

    def finish(self, cache: Any) -> None:
        """Note what was done, once the model has returned."""
        if self.pruned is not None and self.images is not None:
            self.block.trace.calls.append(_call(self.pruned, self.images))
        if self.turn is not None and cache is not None:
            self.block.turns[cache] = self.turn


@dataclass(eq=False)
class Block:
    """An open block.

    Attributes:
        adapter, pruner, budget: what prunes.
        question: of all rows, or of each, or None to read it off the prompts.
        trace: for the user.
        turns: the pruned prompt of each cache that was filled in this block.
    """

    adapter: ModelAdapter
    pruner: Pruner
    budget: Budget | None
    question: str | Sequence[str] | None
    trace: Trace = field(default_factory=Trace)
    turns: WeakKeyDictionary[Any, Turn] = field(default_factory=WeakKeyDictionary)

    def generate(self, original: Callable[..., Any], run: Run, caller: Tensor) -> Any:
        """Generate from pruned inputs, and give the sequences the caller's prompt back.

        Args:
            original: the model's own ``generate``.
            run: of ``rewrite``.
            caller: (B, L) the caller's ``input_ids``.
        """
        shown = run.arguments["input_ids"].shape[1]
        model = self.adapter.model
        options = _lengths(model, run.arguments, caller.shape[1] - shown)
        with run.inside or nullcontext():
            output = original(**{**run.arguments, **options, **({"disable_compile": True} if run.inside else {})})
        sequences = getattr(output, "sequences", output)
        copies = len(sequences) // len(caller)
        cache = getattr(output, CACHE, run.arguments.get(CACHE))
        alike = copies == 1 and _setting(model, run.arguments, "num_beams") <= 1  # else its rows are not the caller's
        run.finish(cache if alike else None)
        prompt = caller.repeat_interleave(copies, 0).to(sequences.device)
        sequences = torch.cat([prompt, sequences[:, shown:]], 1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def rewrite(self, arguments: Mapping[str, Any], *, generating: bool) -> Run | None:
        """Prune the images in the arguments of a call; None if it has none and continues no pruned prompt."""
        arguments = renamed(arguments)
        cache, ids = arguments.get(CACHE), arguments.get("input_ids")
        turn = self.turns.get(cache) if cache is not None else None
        if turn is not None:
            return self._continue(turn, arguments, generating=generating)
        marked = ids is not None and bool(self.adapter.placeholders(ids).any())
        if not marked and not {*PIXELS.values(), "inputs_embeds"} & arguments.keys():
            return None
        if "mm_encoder_outputs" in arguments:
            raise ModelError("the images are encoded already, so that they cannot be pruned; give pixel_values")
        if cache is not None and int(cache.get_seq_length()):
            raise ModelError(f"{CACHE} was not filled in this block; prune all turns of a conversation in one block")
        if ids is not None and generating:
            self._check_generation(ids, arguments)
        elif ids is not None:  # a forward numbers the columns, padding included
            arguments = {"position_ids": self.adapter.forward_positions(arguments), **arguments}
        return self._prune(arguments)

    def _check_generation(self, ids: Tensor, arguments: Mapping[str, Any]) -> None:
        pad = self.adapter.processor.tokenizer.pad_token_id
        if "attention_mask" not in arguments and len(ids) > 1 and (ids[:, [0, -1]] == pad).any():
            raise ModelError("the prompts are padded, so that generate needs their attention_mask")
        if not CHUNKS_WORK and _setting(self.adapter.model, arguments, "prefill_chunk_size"):
            raise ModelError(
                "this version of transformers loses images with prefill_chunk_size; leave it, or take >= 5.23"
            )

    def _prune(self, arguments: Mapping[str, Any]) -> Run:
        ids = arguments.get("input_ids")
        questions = [self.question] * len(ids) if isinstance(self.question, str) and ids is not None else self.question
        pruned = self.adapter.prune_inputs(arguments, self.pruner, self.budget, questions)
        inputs = pruned.inputs
        assert ids is not None  # prune_inputs would have refused
        images = torch.bincount(torch.tensor(pruned.layout.item_rows), minlength=len(ids)).to(ids.device)
        pixels = len(arguments.get("pixel_values", ()))
        turn = Turn(
            ids, {name: inputs[name] for name in TYPES.union(COLUMNS) & inputs.keys()}, images, pixels, pruned.inside
        )
        return Run(self, inputs, pruned, images, turn, pruned.inside, waiting=inputs["input_ids"].shape[1])

    def _continue(self, turn: Turn, arguments: Mapping[str, Any], *, generating: bool) -> Run:
        """Translate a later turn to what the cache holds, and prune the images that are new in it."""
        known, fresh = split_at_cache(turn, arguments, int(arguments[CACHE].get_seq_length()))
        whole = known["input_ids"].shape == known["attention_mask"].shape
        added = self.adapter.count_images(fresh["input_ids"])
        new = new_images(turn, arguments.get("pixel_values"), added)
        rest = without_pixels(self.adapter.model, arguments)
        run = Run(self, rest | fresh, inside=turn.inside)
        if turn.inside is not None and (new is not None or added.any()):
            raise ModelError(
                "later turns cannot bring images if the pruner works inside the LLM; give them all at first"
            )
        if new is not None or added.any():
            if not whole:
                raise ModelError(
                    "a turn that brings images needs the whole conversation in input_ids, from its beginning"
                )
            run = self._prune({**run.arguments, "pixel_values": new})
        joined = {name: torch.cat([column, run.arguments[name]], -1) for name, column in known.items()}
        if run.turn is not None:
            images, pixels = turn.images + run.turn.images, turn.pixels + run.turn.pixels
            run.turn = Turn(arguments["input_ids"], joined, images, pixels)
        # Models read these by the columns of the cache.
        run.arguments |= {name: joined[name] for name in joined.keys() - {"input_ids", "position_ids"}}
        if generating and whole:  # ``generate`` itself skips what the cache holds; a forward does not
            run.arguments |= joined
        return run


def _call(pruned: PrunedInputs, images: Tensor) -> PrunedCall:
    """What the trace tells of a call that is over; a selection inside the LLM is no part of the prefill's time."""
    stages = stage_traces(pruned, len(images))
    inside = pruned.inside.seconds["selection"] if pruned.inside else 0.0
    seconds = {"prefill": 0.0, **pruned.seconds}
    seconds |= {"selection": seconds["selection"] + inside, "prefill": seconds["prefill"] - inside}
    before = pruned.layout.free_tokens()
    return PrunedCall(pruned.selection, stages, list(zip(before, stages[-1].counts, strict=True)), seconds)


def _setting(model: Any, arguments: Mapping[str, Any], name: str) -> int:
    """What ``generate`` goes by: an argument, a given generation config, or the model's; 0 if none says."""
    configs = (arguments.get("generation_config"), model.generation_config)
    values = (arguments.get(name), *(getattr(config, name, None) for config in configs))
    return next((int(value) for value in values if value is not None), 0)


def _lengths(model: Any, arguments: Mapping[str, Any], removed: int) -> dict[str, int]:
    """Limits that count the prompt, less the columns that pruning removed from it."""
    limits = {}
    for name, stronger in {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}.items():
        limit = _setting(model, arguments, name)
        if limit and not _setting(model, arguments, stronger):
            limits[name] = limit - removed
    return limits
