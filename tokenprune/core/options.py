"""From a mapping of options to a dataclass, with names and types checked first."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tokenprune.core.errors import ConfigError, TokenPruneError, hint

T = TypeVar("T")
_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
    Mapping: "a mapping",
}


def construct(target: type[T], options: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from options, checking their names and types first.

    Args:
        target: a dataclass.
        options: its fields.
        where: what to call it in messages.

    Raises:
        ConfigError: if an option is unknown, missing or of the wrong type.
        TokenPruneError: if the dataclass refuses its value.
    """
    fields = {f.name: f for f in dataclasses.fields(target) if f.init}  # type: ignore[arg-type]
    for key in options:
        if key not in fields:
            raise ConfigError(f"{where} has no option {key!r}; {hint(key, fields)}")
    for key, item in fields.items():
        optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if key not in options and not optional:
            raise ConfigError(f"{where} needs the option {key!r}")
    wanted = _annotations(target)
    values = {key: _typed(value, wanted.get(key, Any), f"{where}: {key}") for key, value in options.items()}
    try:
        return target(**values)
    except TokenPruneError as error:
        raise type(error)(f"{where}: {error}") from None


def describe(target: type, name: str) -> str:
    """The type of a dataclass's field in words, for example ``an integer or null``."""
    return _describe(_annotations(target).get(name, Any))


def _annotations(target: type) -> dict[str, Any]:
    try:
        return get_type_hints(target)
    except NameError:  # a class defined in a function may name types that only the function knows; it checks itself
        return {}


def _typed(value: Any, annotation: Any, where: str) -> Any:
    """The value, converted where YAML knows fewer types than Python, if it fits the annotation."""
    try:
        return _convert(value, annotation)
    except _MismatchError:
        if choices := _choices(annotation):
            raise ConfigError(f"{where} is {value!r}; {hint(value, map(str, choices))}") from None
        raise ConfigError(f"{where} must be {_describe(annotation)}, got {value!r}") from None


class _MismatchError(Exception):
    pass


def _convert(value: Any, annotation: Any) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for option in args:
            with contextlib.suppress(_MismatchError):
                return _convert(value, option)
        raise _MismatchError
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, args[0]) for item in value)
    if annotation is float and type(value) is int:
        return float(value)
    if origin is Literal:
        fits = value in args
    elif annotation in (bool, int, float, str):
        fits = type(value) is annotation  # True is no integer here
    else:
        plain = origin or annotation
        fits = plain is Any or not isinstance(plain, type) or isinstance(value, plain)
    if not fits:
        raise _MismatchError
    return value


def _choices(annotation: Any) -> list[Any]:
    """The values of a ``Literal``, perhaps inside a union; empty if there is none."""
    literals = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    return [choice for literal in literals for choice in get_args(literal)]


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list, each item {_describe(get_args(annotation)[0])}"
    plain = get_origin(annotation) or annotation
    return _WORDS.get(plain) or str(getattr(plain, "__name__", plain))
