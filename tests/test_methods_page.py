"""docs/methods.md says of each method where it chooses, and has a section for it that names its test and options."""

import dataclasses
import re
from pathlib import Path

import pytest

from tokenprune.core.stages import PROJECTOR
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.testing.pruner_on_models import TINY

LLAVA = dataclasses.replace(TINY, early_stage=PROJECTOR)
PAGE = (Path(__file__).parents[1] / "docs/methods.md").read_text()
ROWS = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \| `(\w+)` \|", PAGE, re.MULTILINE)


def section(name):
    return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize(("name", "anchor", "place"), ROWS, ids=[name for name, *_ in ROWS])
def test_a_row_is_what_the_method_says(name, anchor, place):
    assert anchor == name
    assert {step.stage.place for step in create_pruner(name).steps(LLAVA)} == {place}
    text = section(name)
    assert PRUNERS.entry(name).paper in text
    assert f"test_{name}.py" in text
    for field in dataclasses.fields(PRUNERS.get(name)):
        assert field.name in ("positions", "segments") or field.name in text, field.name


def test_all_that_read_the_tower_alone_are_there():
    assert {"fastervlm", "prumerge", "vscan"} < {name for name, *_ in ROWS}
    assert len(ROWS) == len(set(ROWS)) == len(re.findall(r"^## (?!Not here)", PAGE, re.MULTILINE))
