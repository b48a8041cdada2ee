"""Options with a list of values refuse others where a pruner's class is called, not only where YAML is read."""

import dataclasses
from typing import Literal, get_origin, get_type_hints

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.pruners.base import PRUNERS


def choices():
    for name in PRUNERS.names():
        target = PRUNERS.get(name)
        hints = get_type_hints(target)
        fields = [field.name for field in dataclasses.fields(target) if field.init]
        yield from ((name, field) for field in fields if get_origin(hints[field]) is Literal)


@pytest.mark.parametrize(("name", "option"), list(choices()))
def test_another_value_is_refused(name, option):
    with pytest.raises(ConfigError, match=f"option '{option}' is 'neither'"):
        PRUNERS.get(name)(**{option: "neither"})


def test_there_are_some():
    assert {("trim", "count"), ("holov", "order"), ("scope", "combine")} < set(choices())
