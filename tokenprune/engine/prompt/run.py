"""Run a model on inputs that may be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.prompt.shorten import PrunedInputs, fresh, unpack

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ran(Generic[T]):
    """What a call of the model returned, and what happened inside the LLM meanwhile.

    Attributes:
        output: what it returned.
        stages: what went on from each stage inside the LLM, in their order.
        seconds: that the selections inside the LLM took.
    """

    output: T
    stages: tuple[Alive, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, output: T, inside: InsideLLM | None) -> Ran[T]:
        """The result of a call in which something pruned inside the LLM, or nothing did."""
        return cls(output) if inside is None else cls(output, tuple(inside.stages), inside.seconds["selection"])


def generate(model: Any, inputs: Mapping[str, Any] | PrunedInputs, options: Mapping[str, Any]) -> Ran[Tensor]:
    """Tokens (B, T) that ``generate`` adds to the prompts; greedy search unless the options say otherwise.

    Raises:
        ModelError: for pruned inputs without a cache; transformers takes gaps in the positions for packed prompts. Or
            if a logit is not a number: what would be taken for an answer means nothing.
    """
    arguments, plan = unpack(inputs)
    if "mm_encoder_outputs" in arguments and options.get("use_cache") is False:
        raise ModelError("generate with use_cache=False cannot take pruned inputs; leave the cache on")
    processors = LogitsProcessorList([_Numbers(), *options.get("logits_processor", ())])
    options = {"do_sample": False, **options, "logits_processor": processors}
    inside = InsideLLM(model, plan) if plan else None
    if inside:
        options["disable_compile"] = True  # hooks are Python; on a GPU a static cache would compile the model
    with inside or nullcontext():
        output = model.generate(**fresh(arguments), **options)
    new: Tensor = getattr(output, "sequences", output)[:, arguments["input_ids"].shape[1] :]
    return Ran.of(new, inside)


class _Numbers(LogitsProcessor):  # type: ignore[misc]
    """Lets logits pass as they are, unless one is not a number."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(scores.isnan().any()):
            raise ModelError("the model's logits are not numbers (NaN); a dtype of more range may help")
        return scores


def forward(adapter: ModelAdapter, inputs: Mapping[str, Any] | PrunedInputs) -> Ran[Any]:
    """What the model's forward returns: ``logits`` (B, 1, vocabulary) of the last position, and the cache."""
    arguments, plan = unpack(inputs)
    inside = InsideLLM(adapter.model, plan) if plan else None
    with inside or nullcontext():
        output = adapter.model(**adapter.forward_inputs(fresh(arguments)), use_cache=True, logits_to_keep=1)
    return Ran.of(output, inside)
