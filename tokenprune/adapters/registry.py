"""The adapters that are known by name, and which one serves a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenprune.adapters.auto import AutoAdapter
from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.registry import Registry

ADAPTERS: Registry[ModelAdapter] = Registry("adapter", package="tokenprune.adapters", group="tokenprune.adapters")


def register_adapter(name: str, *, paper: str | None = None) -> Callable[[type[ModelAdapter]], type[ModelAdapter]]:
    """Class decorator that makes an adapter known to the CLI, YAML files, the contract tests and the docs.

    Args:
        name: public name; also that of its file and YAML file.
        paper: URL of the paper that introduced the family.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return ADAPTERS.register(name, paper=paper)


def adapter_class(model_type: str | None) -> type[ModelAdapter]:
    """The adapter that serves a ``config.model_type``; ModelError if there is none."""
    served = _served()
    if model_type not in served:
        known = ", ".join(sorted(served))
        raise ModelError(f"no adapter knows models of type {model_type!r}; known: {known}; see docs/add_an_adapter.md")
    return served[model_type]


def _served() -> dict[str, type[ModelAdapter]]:
    return {kind: ADAPTERS.get(name) for name in ADAPTERS.names() for kind in ADAPTERS.get(name).model_types}


def adapter_for(model: Any, processor: Any, **options: Any) -> ModelAdapter:
    """The adapter of a loaded model; ``AutoAdapter`` if none knows its type.

    Takes the arguments of ``ModelAdapter``, and raises what it raises.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    kind = _served().get(model_type, AutoAdapter) if model_type else adapter_class(model_type)
    return kind(model, processor, **options)
