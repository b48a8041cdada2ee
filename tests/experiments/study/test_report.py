"""The report as a whole, and that the experiments' tables are what it says of their results."""

from pathlib import Path

import pytest
from study import objective
from study.report import write
from study.results import save
from study_rows import HEADER, rows

from tokenprune.core.errors import DataError

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
SHOWN = ("dop_additivity", "dop_free_subsets", "dop_objective", "dop_transfer")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(EXPERIMENTS / "dop_additivity/results.jsonl", tmp_path_factory.mktemp("report"))


@pytest.mark.full
@pytest.mark.parametrize("name", SHOWN)
def test_the_experiments_tables_are_the_reports(report, name):
    lines = set(report.read_text().splitlines())
    tables = [line for line in (EXPERIMENTS / name / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len(tables) > 4
    assert [line for line in tables if line not in lines] == []


@pytest.mark.full
def test_all_pictures_are_there(report):
    named = [line.partition("](")[2].rstrip(")") for line in report.read_text().splitlines() if line.startswith("![")]
    assert len(named) == 5
    assert all((report.parent / name).stat().st_size > 10_000 for name in named)


def test_a_study_of_one_base_without_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "DRAWS", 5)
    save(tmp_path / "results.jsonl", HEADER, rows(), {}, ())
    text = write(tmp_path / "results.jsonl", tmp_path).read_text()
    assert "18 policies, 20 validation and 30 test questions" in text
    assert "## Depth-wise against free" not in text
    assert "base to base" not in text


def test_no_results(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        write(tmp_path / "results.jsonl", tmp_path)
