"""The policy file: one YAML file that people can read, written whole or not at all, and checked when it is read.

It holds mappings with text for keys, lists, numbers and text, so it could be JSON as well. The options of the ``base``
pruner and whether its name exists are left to who makes the pruner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.options import construct
from tokenprune.core.sizes import ModelSpec
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.policy import Limit, Objective, Origin, Policy
from tokenprune.pruners.dop.solve import Candidate

FORMAT = 1


def save(policy: Policy, path: Path | str) -> None:
    """Write a policy to its file; who reads at the same time sees the old one or the new one, never half of it.

    Args:
        policy: to write.
        path: of the file; its folder is made if need be.

    Raises:
        ConfigError: if an option of the base pruner is no plain value.
        DataError: if the file cannot be written.
    """
    target = Path(path)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        text = yaml.safe_dump(to_mapping(policy), sort_keys=False, default_flow_style=None, width=120)
        target.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        os.replace(half, target)
    except yaml.YAMLError as error:
        raise ConfigError(f"policy {str(path)!r} cannot be written as YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise DataError(f"policy {str(path)!r} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def load(path: Path | str, spec: ModelSpec | None = None) -> Policy:
    """Read the file of a policy, and check it.

    Args:
        path: of the file.
        spec: of the model that the policy is for; None leaves that to ``Policy.check``.

    Raises:
        DataError: if it cannot be read.
        ConfigError: if it is not the file of a policy, or the model has fewer layers or visual tokens.
    """
    where = f"policy {str(path)!r}"
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    policy = from_mapping(raw, where)
    if spec is not None:
        try:
            policy.check(spec)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return policy


def to_mapping(policy: Policy) -> dict[str, Any]:
    """The mapping that the file of a policy holds."""
    curves = {name: [list(point) for point in c.points.items()] for name, c in policy.curves.to_mapping().items()}
    budget = dataclasses.asdict(policy.budget)
    if policy.budget.latency:
        budget["latency"] = {name: list(values) for name, values in budget["latency"].items()}
    return {
        "format": FORMAT,
        "origin": dataclasses.asdict(policy.origin),
        "base": dict(policy.base),
        "objective": dataclasses.asdict(policy.objective),
        "budget": budget,
        "chosen": _plain(policy.chosen),
        "candidates": [_plain(candidate) for candidate in policy.candidates],
        "curves": {"layers": policy.curves.layers, "visual_tokens": policy.curves.visual_tokens, **curves},
    }


def from_mapping(raw: Any, where: str = "policy") -> Policy:
    """The policy of a mapping that a file holds; the inverse of ``to_mapping``.

    Args:
        raw: as read.
        where: what to call it in messages.

    Raises:
        ConfigError: if a key is unknown or missing, or a value has a wrong type or cannot be.
    """
    given = _mapping(raw, where)
    if (version := given.pop("format", None)) != FORMAT:
        raise ConfigError(f"{where} has format {version!r}, but this version of tokenprune reads format {FORMAT}")
    # The reading of attention decides what depths and curves may be. Without an objective Policy is refused below.
    objective = _make(Objective, given.get("objective", {"samples": 1}), f"{where}: objective")
    removed = objective.attention == "remove"
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "origin": lambda value, at: _make(Origin, value, at),
        "base": _mapping,
        "objective": lambda value, at: objective,
        "budget": _limit,
        "chosen": lambda value, at: _candidate(value, removed, at),
        "candidates": lambda value, at: tuple(_candidate(v, removed, f"{at}[{i}]") for i, v in _numbered(value, at)),
        "curves": lambda value, at: _curves(value, removed, at),
    }
    parts = {key: parsers[key](value, f"{where}: {key}") if key in parsers else value for key, value in given.items()}
    return construct(Policy, parts, where)


def _plain(candidate: Candidate) -> dict[str, Any]:
    """The reading of attention is the objective's, so it is not said again."""
    mapping = dataclasses.asdict(candidate)
    del mapping["depths"]["update_only"]
    return mapping


def _candidate(value: Any, removed: bool, where: str) -> Candidate:
    given = _mapping(value, where)
    if "depths" in given:
        depths = _mapping(given["depths"], f"{where}: depths")
        if "update_only" in depths:
            raise ConfigError(f"{where}: depths has no option 'update_only'; the file says it as objective: attention")
        given["depths"] = construct(Depths, depths | {"update_only": not removed}, f"{where}: depths")
    return construct(Candidate, given, where)


def _limit(value: Any, where: str) -> Limit:
    given = _mapping(value, where)
    if given.get("latency") is not None:
        given["latency"] = _make(LatencyModel, given["latency"], f"{where}: latency")
    return construct(Limit, given, where)


@dataclass(frozen=True)
class _Measurements:
    """The keys of ``curves`` in the file; a curve is a list of pairs of value and divergence."""

    layers: int
    visual_tokens: int
    attention: tuple[Any, ...]
    mlp: tuple[Any, ...]
    tokens: tuple[Any, ...]
    query: tuple[Any, ...] | None = None


def _curves(value: Any, removed: bool, where: str) -> Curves:
    given = _make(_Measurements, value, where)
    names = ["attention", "mlp", "tokens", *(["query"] if given.query is not None else [])]
    points = {name: _points(getattr(given, name), f"{where}: {name}") for name in names}
    try:
        return Curves.of(given.layers, given.visual_tokens, **points, update_only=not removed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _points(pairs: tuple[Any, ...], where: str) -> dict[int, float]:
    points: dict[int, float] = {}
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and [type(x) for x in pair] in ([int, float], [int, int])):
            raise ConfigError(f"{where} must be a list of pairs of an integer and a number, got {pair!r}")
        if pair[0] in points:
            raise ConfigError(f"{where} has two points at {pair[0]}")
        points[pair[0]] = float(pair[1])
    return points


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys to values, got {value!r}")
    return dict(value)


def _numbered(value: Any, where: str) -> list[tuple[int, Any]]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    return list(enumerate(value))


def _make(target: type[Any], value: Any, where: str) -> Any:
    return construct(target, _mapping(value, where), where)
