"""Which cases of a contract run by default, and which under the marker ``full``: a covering design."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])
Values = Sequence[Any] | Mapping[str, Any]  # of a parameter, or by what they are called
FULL = "full: the rest of a product of cases, of which the others cover each value"


def over(**axes: Values) -> Callable[[Test], Test]:
    """Decorator of a contract's test that gives some of its parameters their values.

    Args:
        **axes: values of each parameter.
    """

    def mark(test: Test) -> Test:
        test.axes = axes  # type: ignore[attr-defined]
        return test

    return mark


def parametrize(metafunc: pytest.Metafunc, axes: Mapping[str, Values]) -> None:
    """Parametrise a contract's test with the product of those axes that it takes.

    The last ``rows`` are a ragged batch: with them, all cases run under the first ``attention``. Of each other batch
    under it, and of each other attention, the last case runs; the rest have the marker ``full``.

    Args:
        metafunc: of the test, as ``pytest_generate_tests`` gets it.
        axes: values of each parameter; those of ``over`` come on top.
    """
    axes = {**axes, **getattr(metafunc.function, "axes", {})}
    names = [name for name in axes if name in metafunc.fixturenames]
    if not names:
        return
    cases = list(itertools.product(*(_named(axes[name]) for name in names)))
    rest = _spare(names, cases)
    full = _full(metafunc.config)
    metafunc.parametrize(
        names,
        [
            pytest.param(
                *(value for _, value in case),
                id="-".join(name for name, _ in case),
                marks=full if number in rest else (),
            )
            for number, case in enumerate(cases)
        ],
    )


def _spare(names: list[str], cases: list[tuple[tuple[str, Any], ...]]) -> set[int]:
    """Numbers of the cases that are left out by default."""
    if names[0] != "attention":
        return set()
    groups: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(cases):
        batch = case[names.index("rows")][0] if "rows" in names else ""
        groups.setdefault((case[0][0], batch), []).append(number)
    (first, _), *_, (_, ragged) = [*groups, *groups]
    kept: set[int] = set()
    for (attention, batch), numbers in groups.items():
        if attention == first or batch == ragged:
            kept |= {*(numbers if (attention, batch) == (first, ragged) else numbers[-1:])}
    return set(range(len(cases))) - kept


def _named(values: Values) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else [(str(value), value) for value in values]


def _full(config: pytest.Config) -> pytest.MarkDecorator:
    """The marker, also where a third party's configuration does not name it."""
    if FULL not in config.getini("markers"):
        config.addinivalue_line("markers", FULL)
    return pytest.mark.full
