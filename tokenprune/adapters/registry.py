"""The adapters that are known by name, and which one serves a model."""

from __future__ import annotations

from collections.abc import Callable

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
    kinds = served()
    if model_type not in kinds:
        known = ", ".join(sorted(kinds))
        raise ModelError(f"no adapter knows models of type {model_type!r}; known: {known}; see docs/add_an_adapter.md")
    return kinds[model_type]


def served() -> dict[str, type[ModelAdapter]]:
    """The adapter of each ``config.model_type`` that one serves."""
    return {kind: ADAPTERS.get(name) for name in ADAPTERS.names() for kind in ADAPTERS.get(name).model_types}
