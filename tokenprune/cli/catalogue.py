"""What there is, for ``tokenprune list`` and ``tokenprune show``: every registry by the name a user gives it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from tokenprune.core.errors import RegistryError, hint
from tokenprune.core.options import describe
from tokenprune.core.registry import Entry, Registry
from tokenprune.costs.model_card import load_card
from tokenprune.pruners.base import Idea

WHERE = {
    "tower": "tower",
    "projector": "projector",
    "pre_llm": "before LLM",
    "decoder": "in LLM",
    "cache": "cache",
}
REGISTRIES = {
    "pruners": ("tokenprune.pruners.base", "PRUNERS"),
    "adapters": ("tokenprune.adapters.registry", "ADAPTERS"),
    "tasks": ("tokenprune.tasks.base", "TASKS"),
    "kernels": ("tokenprune.functional.kernels", "KERNELS"),
    "conditioning": ("tokenprune.conditioning.base", "CONDITIONINGS"),
    "tracking": ("tokenprune.sweeps.tracking", "TRACKERS"),
}


def entries(kind: str) -> list[Entry[Any]]:
    """All things of a kind, sorted by name.

    Args:
        kind: a key of ``REGISTRIES``.

    Raises:
        RegistryError: if there is no such kind.
    """
    table = _table(kind)
    if isinstance(table, Registry):
        return [table.entry(name) for name in table.names()]
    return [Entry(name, target, _summary(target), None) for name, target in sorted(table.items())]


def by_idea(found: Sequence[Entry[Any]]) -> dict[str, list[Entry[Any]]]:
    """Things in groups by their ideas, in the order in which ``Idea`` has these; others come last."""
    known = {idea: [entry for entry in found if entry.idea == idea] for idea in get_args(Idea)}
    rest = [entry for entry in found if entry.idea not in known]
    return {idea: entries for idea, entries in [*known.items(), ("other", rest)] if entries}


def where_and_reads(entry: Entry[Any]) -> tuple[str, str]:
    """Where a pruner chooses on LLaVA-1.5-7B with its default options, and which signals it reads, in words."""
    steps = entry.target().steps(load_card("llava-1.5-7b").spec)
    places = dict.fromkeys(WHERE[step.stage.place] for step in steps)
    signals = sorted({signal.plain for step in steps for signal in step.selector.requires})
    return ", ".join(places) or "nowhere", ", ".join(signals)


def broken_plugins(kind: str) -> dict[str, str]:
    """Plug-ins of a kind that do not import: name to reason."""
    table = _table(kind)
    return dict(table.broken) if isinstance(table, Registry) else {}


def find(name: str) -> list[tuple[str, Entry[Any]]]:
    """Find the things of a name, each with its kind; two kinds may share a name.

    Raises:
        RegistryError: if nothing has.
    """
    everything = [(kind, entry) for kind in REGISTRIES for entry in entries(kind)]
    found = [(kind, entry) for kind, entry in everything if entry.name == name]
    if not found:
        raise RegistryError(f"nothing is named {name!r}; {hint(name, {entry.name for _, entry in everything})}")
    return found


def options(target: Any) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option of a dataclass; empty for what has none."""
    if not isinstance(target, type) or not dataclasses.is_dataclass(target):
        return []
    meaning = _attributes(target)
    rows = []
    for field in dataclasses.fields(target):
        if field.init:
            rows.append((field.name, describe(target, field.name), _default(field), meaning.get(field.name, "")))
    return rows


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _yaml(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _yaml(field.default)


def _yaml(value: Any) -> str:
    """A value as one would write it in YAML."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(kind: str) -> Registry[Any] | Mapping[str, Any]:
    if kind not in REGISTRIES:
        raise RegistryError(f"there is no list of {kind!r}; {hint(kind, REGISTRIES)}")
    module, name = REGISTRIES[kind]
    table: Registry[Any] | Mapping[str, Any] = getattr(importlib.import_module(module), name)
    if isinstance(table, Registry):
        with warnings.catch_warnings():  # a broken plug-in is told of by its name, see broken_plugins()
            warnings.simplefilter("ignore")
            table.names()
    return table


def _summary(target: Any) -> str:
    return (target.__doc__ or "").strip().partition("\n")[0]


def _attributes(target: type) -> dict[str, str]:
    """Texts of the ``Attributes`` sections of a class and its bases, in Google's style, by name."""
    texts: dict[str, str] = {}
    for base in reversed(target.__mro__):
        section = re.search(r"Attributes:\n((?:[ \t]+.*\n?|\n)+)", base.__doc__ or "")
        body = inspect.cleandoc("\n" + section[1].partition("\n\n")[0]) if section else ""
        for names, text in re.findall(r"^(\w[\w, ]*):\s*((?:.*\n?)(?:[ \t]+.*\n?)*)", body, re.MULTILINE):
            texts |= dict.fromkeys(re.split(r", *", names), " ".join(text.replace("``", "").split()))
    return texts
