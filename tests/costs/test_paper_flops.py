"""docs/reproducing.md prints what its command prints."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks/paper_flops.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("paper_flops", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["models", "reductions", "grid", "efficiency", "singles"])
def test_tables_of_the_docs_are_the_command_s(script, name):
    assert script.markdown(getattr(script, name)()) in (ROOT / "docs/reproducing.md").read_text()


def test_it_prints_all_of_them(script, capsys):
    script.main()
    printed = capsys.readouterr().out
    assert printed.count("| --- |") == 5
