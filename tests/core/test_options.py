from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.options import construct, describe


@dataclass(frozen=True)
class Thing:
    must: int
    ratio: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] | None = "a"
    sizes: tuple[int, ...] = ()
    parts: tuple[str | Mapping[str, Any], ...] = ()
    free: Any = None

    def __post_init__(self):
        if self.ratio < 0:
            raise BudgetError("ratio must be at least 0")


def test_converts_what_yaml_lacks():
    assert construct(Thing, {"must": 1, "ratio": 2, "sizes": [1, 2], "free": {}}, "thing") == Thing(
        1, 2.0, sizes=(1, 2), free={}
    )
    assert type(construct(Thing, {"must": 1, "ratio": 2}, "thing").ratio) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "thing needs the option 'must'"),
        ({"must": 1, "mist": 1}, "thing has no option 'mist'; did you mean 'must'?"),
        ({"must": True}, "thing: must must be an integer, got True"),
        ({"must": "1"}, "thing: must must be an integer, got '1'"),
        ({"must": 1, "ratio": "x"}, "thing: ratio must be a number, got 'x'"),
        ({"must": 1, "ratio": True}, "thing: ratio must be a number, got True"),
        ({"must": 1, "flag": 1}, "thing: flag must be true or false, got 1"),
        ({"must": 1, "kind": "c"}, "thing: kind is 'c'; Allowed: a, b"),
        ({"must": 1, "sizes": 3}, "thing: sizes must be a list, each item an integer, got 3"),
        ({"must": 1, "sizes": [1, "x"]}, "thing: sizes must be a list"),
        (
            {"must": 1, "parts": ["a", {}, 3]},
            "thing: parts must be a list, each item text or a mapping, got ['a', {}, 3]",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError) as error:
        construct(Thing, options, "thing")
    assert message in str(error.value)


def test_what_the_dataclass_refuses_is_said_of_what():
    with pytest.raises(BudgetError, match=r"^thing: ratio must be at least 0$"):
        construct(Thing, {"must": 1, "ratio": -1}, "thing")


def test_null_where_it_may_be():
    assert construct(Thing, {"must": 1, "kind": None}, "thing").kind is None
    with pytest.raises(ConfigError, match="must be an integer, got None"):
        construct(Thing, {"must": None}, "thing")


def test_describe():
    assert [describe(Thing, name) for name in ("must", "kind", "sizes")] == [
        "an integer",
        "a or b or null",
        "a list, each item an integer",
    ]
