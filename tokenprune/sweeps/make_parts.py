"""From a name and options to the thing, and to all of its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from tokenprune.core.options import construct
from tokenprune.core.registry import Registry
from tokenprune.pruners.base import PRUNERS, Pruner
from tokenprune.pruners.compose import Compose
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.labels import members

T = TypeVar("T")


def make_part(part: Part, registry: Registry[T], where: str) -> tuple[Part, T]:
    """The part with the values of all its options, and what it names.

    Raises:
        TokenPruneError: if a name or option is wrong.
    """
    target = registry.get(part.name)
    made = construct(target, part.options, f"{where} {part.name!r}")
    options = {f.name: _plain(getattr(made, f.name)) for f in dataclasses.fields(made) if f.init}  # type: ignore[arg-type]
    return Part(part.name, options), made


def _plain(value: Any) -> Any:
    """A value as YAML has it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def make_pruner(part: Part, seed: int) -> tuple[Part, Pruner]:
    """A pruner's part with the values of all its options, and the pruner.

    Args:
        part: its name and options.
        seed: of each pruner in it that takes one and has none.

    Raises:
        TokenPruneError: if a name or option is wrong.
    """
    return make_part(_seeded(part, seed), PRUNERS, "pruner")


def _seeded(part: Part, seed: int) -> Part:
    """The part with the run's seed wherever a pruner takes one and has none."""
    options = dict(part.options)
    if any(f.name == "seed" for f in dataclasses.fields(PRUNERS.get(part.name))):
        options = {"seed": seed, **options}
    if PRUNERS.get(part.name) is Compose and isinstance(options.get("pruners"), list | tuple):
        options["pruners"] = [_seeded(member, seed).to_mapping() for member in members(options)]
    return Part(part.name, options)
