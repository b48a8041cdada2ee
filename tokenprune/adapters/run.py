"""Run a model on inputs that may be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from tokenprune.adapters.inputs import PrunedInputs, fresh, unpack
from tokenprune.errors import ModelError


def generate(model: Any, inputs: Mapping[str, Any] | PrunedInputs, options: Mapping[str, Any]) -> Tensor:
    """(B, T) the tokens that ``generate`` adds to the prompts; greedy search unless the options say otherwise.

    Raises:
        ModelError: for pruned inputs without a cache; transformers takes gaps in the positions for packed prompts.
    """
    arguments, inside = unpack(inputs)
    if "mm_encoder_outputs" in arguments and options.get("use_cache") is False:
        raise ModelError("generate with use_cache=False cannot take pruned inputs; leave the cache on")
    options = {"do_sample": False, **options}
    if inside:
        options["disable_compile"] = True  # hooks are Python; on a GPU a static cache would compile the model
    with inside or nullcontext():
        output = model.generate(**fresh(arguments), **options)
    new: Tensor = getattr(output, "sequences", output)[:, arguments["input_ids"].shape[1] :]
    return new


def forward(model: Any, inputs: Mapping[str, Any] | PrunedInputs, **options: Any) -> Any:
    """What the model's forward returns."""
    arguments, inside = unpack(inputs)
    with inside or nullcontext():
        return model(**fresh(arguments), **options)
