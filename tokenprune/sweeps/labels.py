"""What pruners are called in tables: by their names, and the options without which they would be others."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tokenprune.core.errors import TokenPruneError
from tokenprune.core.options import construct
from tokenprune.pruners.base import PRUNERS
from tokenprune.pruners.compose import Compose
from tokenprune.sweeps.config import Part


def labels_of(parts: Sequence[Part]) -> list[str]:
    """The label of each pruner; in full where two that differ would be called the same."""
    brief = [_label(part) for part in parts]
    named: dict[str, Part] = {}
    shared = {label for label, part in zip(brief, parts, strict=True) if named.setdefault(label, part) != part}
    return [_label(part, full=True) if label in shared else label for label, part in zip(brief, parts, strict=True)]


def _label(part: Part, *, full: bool = False) -> str:
    """A pruner's name, and the options without which it would be another; a composition has its members' labels."""
    target = PRUNERS.get(part.name)
    if target is Compose:
        return "+".join(map(_label, members(part.options)))
    fields = {f.name for f in dataclasses.fields(target)}
    needed = {key: value for key, value in part.options.items() if key in fields}
    made = construct(target, needed, part.name)
    for key in tuple(needed):
        rest = {name: value for name, value in needed.items() if name != key}
        with contextlib.suppress(TokenPruneError):
            needed = rest if construct(target, rest, part.name) == made else needed
    shown: Mapping[str, Any] = {k: v for k, v in part.options.items() if k in needed or k not in fields}
    shown = shown if full else made.shown(shown)
    return " ".join([part.name, *(f"{key}={_short(value)}" for key, value in shown.items())])


def _short(value: Any) -> str:
    """An option's value in a label; a pruner inside another is called as it would be alone."""
    if not (isinstance(value, Mapping) and "name" in value):
        return str(value)
    rest = " ".join(f"{key}={option}" for key, option in value.items() if key != "name")
    label = _label(Part.of(value, "pruner")) if value["name"] in PRUNERS else f"{value['name']} {rest}".strip()
    return f"({label})" if " " in label else label


def members(options: Mapping[str, Any]) -> list[Part]:
    """The pruners of a composition, from its options."""
    return [Part.of(member, "pruner") for member in options["pruners"]]
