"""A sweep file: a run's configuration, and what is varied in it; from it to the single runs, all checked.

Besides the keys of a run there are ``grid`` (dotted keys to lists; every combination is a run), ``zip`` (mappings of
dotted keys to lists of one length, whose items go together), ``seeds``, ``exclude`` (mappings of dotted keys to a value
or several; a run that matches one mapping is left out) and ``name``, that of the folder.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.core.budget import KINDS
from tokenprune.core.errors import ConfigError, TokenPruneError, hint
from tokenprune.sweeps.config import RunConfig, load_mapping, parse_config
from tokenprune.sweeps.provenance import digest
from tokenprune.sweeps.store import ELSEWHERE, run_id

MANY = 10_000  # runs that nobody asks for by accident
NAMED = ("model", "task", "pruner", "tracking", "launcher")  # a name alone stands for a mapping
_OWN = ("grid", "zip", "seeds", "exclude", "name")
Settings = dict[str, Any]  # dotted keys to values


@dataclass(frozen=True)
class Sweep:
    """Runs that leave their results in one folder.

    Attributes:
        runs: the configurations.
        names: what each sets, for messages; empty for a single run.
        name: of the folder; None takes a hash of the runs.
        mapping: the sweep as its file has it, after overrides.
    """

    runs: tuple[RunConfig, ...]
    names: tuple[str, ...] = ()
    name: str | None = None
    mapping: Mapping[str, Any] | None = None

    def id(self, resolved: RunConfig) -> str:
        """A hash of what the runs ask for; a single run has the hash of its configuration.

        Args:
            resolved: the first run with all its options.
        """
        if len(self.runs) == 1:
            return run_id(resolved)
        return digest(*(run_id(run) for run in self.runs))


def load_sweep(path: Path | str, overrides: Sequence[str] = (), *, yes: bool = False) -> Sweep:
    """Read a sweep file, or the file of a single run.

    Args:
        path: YAML file.
        overrides: ``dotted.key=value``; ``grid.budget.keep_tokens=[48,24]`` replaces what is varied.
        yes: allow more runs than ``MANY``.

    Raises:
        ConfigError, BudgetError: see ``parse_sweep``.
    """
    return parse_sweep(load_mapping(path, overrides), yes=yes)


def parse_sweep(raw: Mapping[str, Any], *, yes: bool = False) -> Sweep:
    """Make a sweep of plain mappings.

    Args:
        raw: as in the file.
        yes: allow more runs than ``MANY``.

    Raises:
        ConfigError: if a key, type, length or value is wrong, an exclusion fits no run, or there are too many runs.
        BudgetError: if a budget is wrong.
    """
    own = {key: raw[key] for key in _OWN if raw.get(key) is not None}
    base = {key: value for key, value in raw.items() if key not in _OWN}
    axes = _axes(own)
    number = math.prod(map(len, axes))
    if number > MANY and not yes:
        raise ConfigError(f"the sweep has {number:,} points, more than {MANY:,}; add --yes if that is what you want")
    name = own.get("name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)):
        raise ConfigError(f"name is {name!r}; it is that of a folder: letters, digits, '_', '-' and '.'")
    runs, names = [], []
    for settings, mapping in _remaining(base, axes, own.get("exclude", [])):
        names.append(" ".join(f"{key}={_short(value)}" for key, value in settings.items()))
        try:
            runs.append(parse_config(mapping))
        except TokenPruneError as error:
            raise type(error)(f"{names[-1]}: {error}" if settings else str(error)) from None
    return Sweep(tuple(runs), tuple(names), name, raw)


def _axes(own: Mapping[str, Any]) -> list[list[Settings]]:
    """The axes of a sweep, whose values are combined: each is a list of what is set together."""
    lists = dict(_lists(own, "grid", own.get("grid")))  # an override comes after a dotted key of the file
    axes = [[{key: value} for value in values] for key, values in lists.items()]
    groups = own.get("zip", [])
    for index, group in enumerate(groups if isinstance(groups, list) else [groups]):
        columns = dict(_lists(own, f"zip[{index}]", group))
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise ConfigError(f"zip[{index}] needs lists of one length, got {told}")
        axes.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    if "seeds" in own:
        axes.append([{"seed": seed} for seed in _list(own["seeds"], "seeds")])
    keys = [key for axis in axes for key in axis[0]]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key!r} is varied twice, in grid, zip or seeds; once is enough")
    return axes


def _lists(own: Mapping[str, Any], where: str, given: Any) -> Iterator[tuple[str, list[Any]]]:
    if given is None and where not in own:
        return
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where} must map dotted keys to lists, got {given!r}; leave it out if nothing is varied")
    for key, values in _flat(given):
        if key.partition(".")[0] in (*ELSEWHERE, *_OWN):
            raise ConfigError(f"{where} cannot vary {key!r}: it is one for the whole sweep")
        yield key, _list(values, f"{where}.{key}")


def _flat(given: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a mapping and of the mappings in it."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _list(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise ConfigError(f"{where} must be a list of values, got {values!r}")
    if not values:
        raise ConfigError(f"{where} is an empty list; give at least one value")
    return values


def _remaining(
    base: Mapping[str, Any], axes: Sequence[Sequence[Settings]], exclude: Any
) -> list[tuple[Settings, Settings]]:
    """Settings and mappings of the runs that are not excluded."""
    rules = [dict(_flat(rule)) if isinstance(rule, Mapping) else {} for rule in _as_list(exclude)]
    matched, left = [False] * len(rules), []
    varied = sorted({key for axis in axes for key in axis[0]})
    for index, rule in enumerate(rules):
        if not rule:
            raise ConfigError(f"exclude[{index}] must map dotted keys to a value or several, got nothing of the kind")
        for key in rule:
            if not any(key == other or key.startswith(f"{other}.") for other in varied):
                raise ConfigError(f"exclude[{index}] names {key!r}, which is not varied; {hint(key, varied)}")
    for combination in itertools.product(*axes):
        settings = {key: value for part in combination for key, value in part.items()}
        mapping = _set(base, settings)
        hits = [all(_fits(_get(mapping, key), value) for key, value in rule.items()) for rule in rules]
        matched = [before or now for before, now in zip(matched, hits, strict=True)]
        if not any(hits):
            left.append((settings, mapping))
    if not all(matched):
        index = matched.index(False)
        raise ConfigError(f"exclude[{index}] {json.dumps(rules[index])} fits no point of the sweep; mend it or drop it")
    if not left:
        raise ConfigError("exclude leaves no point of the sweep")
    return left


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _set(base: Mapping[str, Any], settings: Settings) -> Settings:
    """A copy of ``base`` with values at dotted keys; outer keys are set before what is inside them."""
    result = {key: _named(key, value) for key, value in copy.deepcopy(dict(base)).items()}
    for key in sorted(settings, key=lambda key: key.count(".")):
        *outer, last = key.split(".")
        place = result
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key!r} cannot be set: {name!r} is {_short(place)}, which has no keys")
        if outer == ["budget"] and last in KINDS:  # of another kind perhaps, and there can be one only
            for kind in KINDS:
                place.pop(kind, None)
        place[last] = _named(key, copy.deepcopy(settings[key]))
    return result


def _named(key: str, value: Any) -> Any:
    return {"name": value} if key in NAMED and isinstance(value, str) else value


def _get(mapping: Any, key: str) -> Any:
    for name in key.split("."):
        mapping = mapping.get(name) if isinstance(mapping, Mapping) else None
    return mapping


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is the one that a rule names, or one of several; a name alone fits whatever options."""
    if isinstance(wanted, list) and value != wanted:
        return any(_fits(value, one) for one in wanted)
    return bool(value == wanted) or (isinstance(value, Mapping) and value.get("name") == wanted)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
