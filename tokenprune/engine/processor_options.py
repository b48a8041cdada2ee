"""What a configuration says of a processor: options of pictures and videos, the system's words, padding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tokenprune.core.errors import ConfigError, ModelError, hint
from tokenprune.core.square import Colour
from tokenprune.engine.prompt.chat_format import write_chat

# Of a call, not of the processor; or settled by what calls it.
NOT_OPTIONS = {"return_tensors", "device", "data_format", "input_data_format", "disable_grouping", "return_metadata"}
NOT_OPTIONS |= {"video_metadata", "do_sample_frames", "fps", "num_frames"}  # a video's frames are chosen by its task
SHOWN = ("image_processor", "video_processor")


def with_options(processor: Any, options: Mapping[str, Any]) -> Any:
    """A processor with other options of its pictures and videos; the one that is given stays as it is.

    Args:
        processor: of a model.
        options: such as ``max_pixels``; each goes to the parts that know it.

    Raises:
        ConfigError: if no part knows an option, or one refuses its value.
    """
    if not options:
        return processor
    parts = {name: part for name in SHOWN if (part := getattr(processor, name, None)) is not None}
    known = {name: _options_of(part) for name, part in parts.items()}
    for key in options:
        if not any(key in keys for keys in known.values()):
            allowed = sorted(set().union(*known.values()))
            name = type(processor).__name__
            raise ConfigError(f"model.processor has no option {key!r} ({name}); {hint(key, allowed)}")
    changed = copy.copy(processor)
    for name, part in parts.items():
        own = {key: value for key, value in options.items() if key in known[name]}
        if own:
            setattr(changed, name, _remade(part, own, known[name]))
    return changed


def _options_of(part: Any) -> set[str]:
    return {*type(part).valid_kwargs.__annotations__} - NOT_OPTIONS


def _remade(part: Any, own: Mapping[str, Any], known: set[str]) -> Any:
    now = {key: value for key, value in part.to_dict().items() if key in known}
    try:
        return type(part)(**{**now, **own})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model.processor {dict(own)} is refused by {type(part).__name__}: {said}") from None


def check_system(processor: Any, system: str) -> None:
    """Raise ModelError unless the chat template writes what the system says; nothing is checked of an empty text."""
    if not system:
        return
    name = type(processor).__name__
    if getattr(processor, "chat_template", None) is None:
        raise ModelError(f"model.system needs a chat template, which {name} does not have; leave it out")
    try:
        written = write_chat(processor, [("?", None)], system)
    except Exception as error:  # whatever a template raises
        raise ModelError(f"model.system: the chat template of {name} refuses a system turn: {error}") from None
    if system.strip() not in written:
        raise ModelError(f"model.system: the chat template of {name} does not write what the system says; leave it out")


def mean_colour(processor: Any) -> Colour:
    """The colour that becomes 0 when a picture is normalised, RGB in 0 to 255; ModelError if there is none."""
    mean = getattr(processor.image_processor, "image_mean", None)
    if mean is None:
        raise ModelError(f"model.square 'pad' needs a mean colour, which {type(processor).__name__} does not have")
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue
