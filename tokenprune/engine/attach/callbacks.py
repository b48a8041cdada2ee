"""What a caller hands to ``generate`` counts in the caller's prompt, while ``generate`` runs on a shortened one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

# Of transformers' own criteria and processors, which read no more of the prompt than how long it is.
COUNTS = (
    "max_length",
    "min_length",
    "begin_index",
    "prompt_length_to_skip",
    "prompt_ignore_length",
    "regulation_start",
)


@dataclass(frozen=True, eq=False)
class WholePrompt:
    """A prompt as the caller knows it, and how long it is as ``generate`` knows it.

    Attributes:
        ids: (B, L) of the caller.
        shown: L', columns of the shortened prompt.
    """

    ids: Tensor
    shown: int

    def restore(self, sequences: Tensor) -> Tensor:
        """Replace shortened prompts by the caller's: (B, L' + n), or several rows for each prompt, to (B, L + n)."""
        prompt = self.ids.repeat_interleave(len(sequences) // len(self.ids), 0).to(sequences.device)
        return torch.cat([prompt, sequences[:, self.shown :]], 1)

    def callbacks(self, arguments: Mapping[str, Any], copies: int) -> dict[str, Any]:
        """Those among the arguments of ``generate`` that are called back, so that they see the caller's prompt.

        Args:
            arguments: by name.
            copies: rows that ``generate`` makes of each prompt before it tells beams apart.
        """
        made: dict[str, Any] = {}
        if (criteria := arguments.get("stopping_criteria")) is not None:
            given = criteria if isinstance(criteria, list | tuple) else [criteria]
            made["stopping_criteria"] = StoppingCriteriaList(self._seeing(each, _Criteria, copies) for each in given)
        if (processors := arguments.get("logits_processor")) is not None:
            made["logits_processor"] = LogitsProcessorList(
                self._seeing(each, _Processor, copies) for each in processors
            )
        if (allowed := arguments.get("prefix_allowed_tokens_fn")) is not None:
            made["prefix_allowed_tokens_fn"] = self._allowing(allowed, copies)
        if (streamer := arguments.get("streamer")) is not None:
            made["streamer"] = _Streamer(streamer, self.ids.cpu())
        return made

    def _row(self, row: int, ids: Tensor) -> Tensor:
        return torch.cat([self.ids[row].to(ids.device), ids[self.shown :]])

    def _allowing(self, allowed: Callable[[int, Tensor], Any], copies: int) -> Callable[[int, Tensor], Any]:
        return lambda row, ids: allowed(row, self._row(row // copies, ids))

    def _seeing(self, callback: Any, wrapper: Callable[[Any, WholePrompt], Any], copies: int) -> Any:
        """A callback that sees the caller's prompt.

        Transformers' own stay what they are, as ``generate`` looks for their types; they are told the shorter length.
        """
        if isinstance(callback, list):
            return type(callback)(self._seeing(each, wrapper, copies) for each in callback)
        if not type(callback).__module__.startswith("transformers.generation"):
            return wrapper(callback, self)
        if (allowed := getattr(callback, "_prefix_allowed_tokens_fn", None)) is not None:
            callback = copy.copy(callback)
            callback._prefix_allowed_tokens_fn = self._allowing(allowed, copies)
            return callback
        counts = {name: getattr(callback, name) for name in COUNTS if getattr(callback, name, None) is not None}
        if counts:
            callback = copy.copy(callback)
            for name, count in counts.items():
                setattr(callback, name, count - (self.ids.shape[1] - self.shown))
        return callback


class _Whole:
    """A callback that is handed the caller's prompt and what follows it, and else is what it was."""

    def __init__(self, callback: Any, prompt: WholePrompt) -> None:
        self.callback, self.prompt = callback, prompt

    def __getattr__(self, name: str) -> Any:
        if name in ("callback", "prompt"):  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.callback, name)


class _Criteria(_Whole, StoppingCriteria):  # type: ignore[misc]
    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        return self.callback(self.prompt.restore(input_ids), scores, **options)


class _Processor(_Whole, LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        return self.callback(self.prompt.restore(input_ids), scores)


class _Streamer:
    """A streamer that gets the caller's prompt, which comes first, and then what follows it."""

    def __init__(self, streamer: Any, prompt: Tensor) -> None:
        self.streamer, self.prompt = streamer, prompt
        self.first = True

    def put(self, value: Tensor) -> None:
        self.streamer.put(self.prompt if self.first else value)
        self.first = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.streamer, name)
