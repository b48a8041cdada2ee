"""What happens to calls in a block that prunes nothing, and to those that go past what prunes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.adapters.cache_argument import CACHE, renamed
from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.errors import ModelError
from tokenprune.engine.attach.interception import within
from tokenprune.engine.decoder.hooks import nothing_inside
from tokenprune.engine.turns import refuse_pruned


class Unpruned:
    """The handler of a block in which nothing is meant to be pruned."""

    def forget(self) -> None:
        """Forget nothing, as nothing is remembered."""

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Let every call pass that is made in another: it needs nothing."""
        return True

    def call(self, entry: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call as the model itself does.

        Raises:
            ModelError: for a cache that holds a pruned prompt, which the model itself would count wrongly.
        """
        refuse_pruned(renamed(named(original, args, kwargs)).get(CACHE))
        with nothing_inside():
            return original(*args, **kwargs)


@dataclass(eq=False)
class Guard:
    """The handler of the part of a model that its calls end in: of calls that go past what prunes.

    Attributes:
        model: whose part it is.
    """

    model: Any

    def passes(self, entry: str, kwargs: dict[str, Any]) -> bool:
        """Let every call pass that is made in another: it needs nothing."""
        return True

    def call(self, entry: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call as the part itself does.

        Raises:
            ModelError: if it is given images by somebody else than the model.
        """
        if brings_pixels(named(original, args, kwargs)) and not within(self.model):
            raise ModelError(
                "the images go past what is pruned: a part of the model is called, or a forward of it that was read or "
                "compiled before; call the model itself, or prune the part"
            )
        return original(*args, **kwargs)


def named(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False)) | kwargs


def brings_pixels(arguments: Mapping[str, Any]) -> bool:
    """Whether a call brings images or videos that are not encoded."""
    return any(arguments.get(name) is not None for name in PIXELS.values())
