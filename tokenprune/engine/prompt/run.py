"""Run a model on inputs that may be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tokenprune.core.errors import ModelError
from tokenprune.engine.prompt.shorten import PrunedInputs, fresh, unpack


def generate(model: Any, inputs: Mapping[str, Any] | PrunedInputs, options: Mapping[str, Any]) -> Tensor:
    """(B, T) the tokens that ``generate`` adds to the prompts; greedy search unless the options say otherwise.

    Raises:
        ModelError: for pruned inputs without a cache; transformers takes gaps in the positions for packed prompts. Or
            if a logit is not a number: what would be taken for an answer means nothing.
    """
    arguments, inside = unpack(inputs)
    if "mm_encoder_outputs" in arguments and options.get("use_cache") is False:
        raise ModelError("generate with use_cache=False cannot take pruned inputs; leave the cache on")
    processors = LogitsProcessorList([_Numbers(), *options.get("logits_processor", ())])
    options = {"do_sample": False, **options, "logits_processor": processors}
    if inside:
        options["disable_compile"] = True  # hooks are Python; on a GPU a static cache would compile the model
    with inside or nullcontext():
        output = model.generate(**fresh(arguments), **options)
    new: Tensor = getattr(output, "sequences", output)[:, arguments["input_ids"].shape[1] :]
    return new


class _Numbers(LogitsProcessor):  # type: ignore[misc]
    """Lets logits pass as they are, unless one is not a number."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(scores.isnan().any()):
            raise ModelError("the model's logits are not numbers (NaN); a dtype of more range may help")
        return scores


def forward(model: Any, inputs: Mapping[str, Any] | PrunedInputs, **options: Any) -> Any:
    """What the model's forward returns."""
    arguments, inside = unpack(inputs)
    with inside or nullcontext():
        return model(**fresh(arguments), **options)
