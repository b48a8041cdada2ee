"""What an open ``tokenprune.prune`` block does with the calls of its model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.cache_argument import CACHE, cache_of, renamed
from tokenprune.adapters.inputs import CHUNKS_WORK, check_one_prompt_a_row
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.engine.attach.callbacks import WholePrompt
from tokenprune.engine.attach.columns import columns_of
from tokenprune.engine.attach.generate_settings import lengths, setting
from tokenprune.engine.attach.handlers import brings_pixels, named
from tokenprune.engine.attach.model_run import Run, current_run
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.prompt.encoders import without_pixels
from tokenprune.engine.prompt.shorten import COLUMN, PrunedInputs, as_tensors
from tokenprune.engine.session import Session
from tokenprune.engine.trace import PrunedCall, Trace, stage_traces
from tokenprune.engine.turns import (
    COLUMNS,
    TYPES,
    Note,
    Turn,
    cached_text,
    new_images,
    remember,
    remembered,
    split_at_cache,
)
from tokenprune.pruners.base import Pruner


@dataclass(eq=False)
class Block:
    """An open block; see ``interception.Handler`` for its calls.

    Attributes:
        session: with the model.
        pruner, budget: what prunes.
        question: of all rows, or of each, or None to read it off the prompts.
        trace: for the user.
        trace_features: whether the trace holds features that a pruner made.
        notes: of caches that were filled in this block and live still.
    """

    session: Session
    pruner: Pruner
    budget: Budget | None
    question: str | Sequence[str] | None
    trace: Trace = field(default_factory=Trace)
    trace_features: bool = False
    notes: weakref.WeakSet[Note] = field(default_factory=weakref.WeakSet)

    @property
    def adapter(self) -> ModelAdapter:
        """The adapter of the session's model."""
        return self.session.adapter

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Whether a call is a part of a run of this block and needs nothing; in decoding, that is each forward."""
        run = current_run()
        if run is None or run.block is not self or brings_pixels(kwargs):
            return False
        if entry == "generate":
            return True
        cache, inside = kwargs.get(CACHE), run.inside
        if run.waiting > 0 or kwargs.get("input_ids") is None:
            return False
        if cache is None:
            return inside is None and kwargs.get("attention_mask") is not None
        return inside is None or inside.knows(cache)

    def call(self, entry: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prune the images in a call."""
        run, arguments = current_run(), renamed(named(original, args, kwargs))
        if run is not None and run.block is self and not brings_pixels(arguments):
            return run.forward(original, arguments)
        if entry == "generate":
            return self._generate(original, arguments)
        run = self._rewrite(arguments, generating=False)
        if run is None:
            return original(*args, **kwargs)
        with run.under_way():
            output = run.forward(original, run.arguments)
        self._finish(run, _returned_cache(output, run.arguments))
        return output

    def forget(self) -> None:
        """Let go of the prompts in the caches that the user keeps, as the block has ended."""
        for note in tuple(self.notes):
            note.turn = None

    def _generate(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Generate from pruned inputs, and give the sequences the caller's prompt back."""
        if (ids := arguments.pop("inputs", None)) is not None:
            arguments["input_ids"] = ids
        with torch.no_grad():
            run = self._rewrite(arguments, generating=True)
        if run is None:
            return original(**arguments)
        model, given = self.adapter.model, run.arguments
        prompt = WholePrompt(arguments["input_ids"], given["input_ids"].shape[1])
        beams = max(1, setting(model, given, "num_beams"))
        options = lengths(model, given, prompt.ids.shape[1] - prompt.shown, compiling=run.inside is None)
        options |= prompt.callbacks(given, max(beams, setting(model, given, "num_return_sequences")) // beams)
        with run.under_way():
            output = original(**{**given, **options})
        sequences = getattr(output, "sequences", output[0] if isinstance(output, tuple) else output)
        assert isinstance(sequences, Tensor)
        alike = len(sequences) == len(prompt.ids) and beams == 1  # else its rows are not the caller's
        self._finish(run, getattr(output, CACHE, given.get(CACHE)) if alike else None)
        sequences = prompt.restore(sequences)
        if isinstance(output, Tensor):
            return sequences
        if isinstance(output, tuple):
            return sequences, *output[1:]
        output.sequences = sequences
        return output

    def _rewrite(self, arguments: dict[str, Any], *, generating: bool) -> Run | None:
        """Prune the images in the arguments of a call; None if it has none and continues no pruned prompt."""
        cache, ids = arguments.get(CACHE), arguments.get("input_ids")
        turn = remembered(cache, self.notes, self)
        if turn is not None:
            return self._continue(turn, arguments, generating=generating)
        marked = ids is not None and bool(self.adapter.placeholders(ids).any())
        if not marked and not brings_pixels(arguments) and arguments.get("inputs_embeds") is None:
            return None
        if arguments.get("mm_encoder_outputs") is not None:
            raise ModelError(
                "the images reach the model encoded already (mm_encoder_outputs), so that they cannot be pruned; give "
                "pixel_values, and read model.generate in the block, not before it"
            )
        if ids is not None:
            arguments = self._with_positions(arguments, generating=generating)
        if cache is None or not int(cache.get_seq_length()):
            return self._prune(arguments)
        if not generating:
            raise ModelError(
                f"{CACHE} holds tokens that were not pruned in this block, so that a forward cannot bring images; give "
                "generate the whole conversation, or leave the cache"
            )
        text = cached_text(arguments, self.adapter.placeholders, self.adapter.positions)
        return self._continue(text, {**arguments, "position_ids": None}, generating=generating)

    def _with_positions(self, arguments: dict[str, Any], *, generating: bool) -> dict[str, Any]:
        """The position ids that the caller gave, in the shape that is pruned, or those that the model would number."""
        positions = arguments.get("position_ids")
        if generating:
            self._check_generation(arguments["input_ids"], arguments)
        else:
            check_one_prompt_a_row(arguments)
        if positions is not None:
            return {**arguments, "position_ids": self.adapter.given_positions(positions, arguments)}
        if generating:
            return arguments
        # A forward numbers the columns, padding included.
        return {**arguments, "position_ids": self.adapter.forward_positions(arguments)}

    def _check_generation(self, ids: Tensor, arguments: Mapping[str, Any]) -> None:
        pad = self.adapter.processor.tokenizer.pad_token_id
        # Of one row, transformers finds the padding itself, unless it may be the end.
        tells = pad is not None and (len(ids) > 1 or pad != self.adapter.processor.tokenizer.eos_token_id)
        if arguments.get("attention_mask") is None and tells and bool((ids[:, [0, -1]] == pad).any()):
            raise ModelError("the prompts are padded, so that generate needs their attention_mask")
        if not CHUNKS_WORK and setting(self.adapter.model, arguments, "prefill_chunk_size"):
            raise ModelError(
                "this version of transformers loses images with prefill_chunk_size; leave it, or take >= 5.23"
            )

    def _prune(self, arguments: Mapping[str, Any]) -> Run:
        ids, wanted = arguments.get("input_ids"), arguments.get("logits_to_keep")
        questions = [self.question] * len(ids) if isinstance(self.question, str) and ids is not None else self.question
        if ids is not None and not isinstance(wanted, int | None):
            arguments = {**arguments, COLUMN: torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}
        if ids is not None:
            arguments = as_tensors(self.adapter.model, arguments)
        pruned = self.session.prune_inputs(arguments, self.pruner, self.budget, questions)
        inputs = pruned.inputs
        assert ids is not None  # prune_inputs would have refused
        if (column := inputs.pop(COLUMN, None)) is not None:
            inputs["logits_to_keep"] = columns_of(wanted, column, ids.shape[1])
        images = torch.bincount(torch.tensor(pruned.layout.item_rows, device="cpu"), minlength=len(ids)).to(ids.device)
        pixels = len(arguments["pixel_values"]) if arguments.get("pixel_values") is not None else 0
        shown = {name: inputs[name] for name in TYPES.union(COLUMNS) if inputs.get(name) is not None}
        inside = InsideLLM(self.adapter.model, pruned.inside) if pruned.inside is not None else None
        turn = Turn(ids, shown, images, pixels)
        return Run(
            self, self.adapter.device, inputs, pruned, images, turn, inside, waiting=inputs["input_ids"].shape[1]
        )

    def _continue(self, turn: Turn, arguments: Mapping[str, Any], *, generating: bool) -> Run:
        """Translate a later turn to what the cache holds, and prune the images that are new in it."""
        cache = arguments[CACHE]
        known, fresh = split_at_cache(turn, arguments, int(cache.get_seq_length()))
        whole = known["input_ids"].shape == known["attention_mask"].shape
        added = self.adapter.count_images(fresh["input_ids"])
        new = new_images(turn, arguments.get("pixel_values"), added)
        rest = without_pixels(self.adapter.model, arguments)
        run = Run(self, self.adapter.device, rest | fresh)
        if turn.inside is not None:
            run.inside = InsideLLM(self.adapter.model, turn.inside.plan)
            run.inside.resume(cache, turn.inside)
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
            if run.inside is not None:
                raise ModelError(
                    "a pruner inside the LLM needs the whole prompt in one forward, but the cache holds the turns "
                    "before its image already; leave the cache"
                )
        joined = {name: torch.cat([column, run.arguments[name]], -1) for name, column in known.items()}
        if run.turn is not None:
            images, pixels = turn.images + run.turn.images, turn.pixels + run.turn.pixels
            run.turn = Turn(arguments["input_ids"], joined, images, pixels)
        # Models read these by the columns of the cache.
        run.arguments |= {name: joined[name] for name in joined.keys() - {"input_ids", "position_ids"}}
        if generating and whole:  # ``generate`` itself skips what the cache holds; a forward does not
            run.arguments |= joined
        return run

    def _finish(self, run: Run, cache: Any) -> None:
        """Note what was done, once the model has returned."""
        if run.pruned is not None and run.images is not None:
            self.trace.calls.append(self._told(run, run.pruned, len(run.images)))
        if run.turn is not None and cache is not None:
            held = run.inside.held if run.inside is not None else None
            self.notes.add(remember(replace(run.turn, inside=held), cache, self))

    def _told(self, run: Run, pruned: PrunedInputs, batch: int) -> PrunedCall:
        """What the trace tells; a selection inside the LLM is no part of the prefill's time."""
        inside = run.inside.seconds["selection"] if run.inside else 0.0
        stages = stage_traces(pruned, run.inside.stages if run.inside else (), batch)
        before, selection = pruned.layout.free_tokens(), pruned.selection
        after = stages[-1].counts if stages else before  # if nothing went through the LLM: ``custom_generate`` may
        if selection is not None and not self.trace_features:
            selection = selection.without_features()
        seconds = {
            "vision": pruned.seconds["vision"],
            "selection": pruned.seconds["selection"] + inside,
            "prefill": run.prefill_seconds - inside,
        }
        return PrunedCall(selection, stages, list(zip(before, after, strict=True)), seconds)


def _returned_cache(output: Any, arguments: Mapping[str, Any]) -> Any:
    """The cache that a forward filled, of an output with names or a tuple, or the one that it was given."""
    held = (part for part in (output if type(output) is tuple else ()) if hasattr(part, "get_seq_length"))
    return cache_of(output) or next(held, arguments.get(CACHE))
