"""A model's own encoders of images and videos: how they are run, and what they take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tokenprune.adapters.inputs import PIXELS


def encode_items(model: Any, modality: str, inputs: Mapping[str, Any], **options: Any) -> Any:
    """Run vision tower and projector as ``generate`` does; ``pooler_output`` of the result holds the visual tokens."""
    arguments = {name: inputs[name] for name in names_of(model, modality, inputs)}
    return _encoder(model, modality)(**arguments, return_dict=True, **options)


def _encoder(model: Any, modality: str) -> Any:
    return getattr(model.base_model, f"get_{modality}_features", None)


def names_of(model: Any, modality: str, inputs: Mapping[str, Any]) -> list[str]:
    """The inputs that the encoder of a modality takes."""
    encoder = _encoder(model, modality)
    return [] if encoder is None else [name for name in inspect.signature(encoder).parameters if name in inputs]


def without_pixels(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is left if the inputs of the encoders are taken out."""
    pixels = {name for modality in PIXELS for name in names_of(model, modality, inputs)}
    return {name: value for name, value in inputs.items() if name not in pixels}
