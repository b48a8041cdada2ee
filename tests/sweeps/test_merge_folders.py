"""Cells of a sweep that other processes computed in folders of their own."""

import json

import pytest
from programs import answers, sweep_file

from tokenprune.core.errors import ConfigError
from tokenprune.sweeps import evaluate, runner
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.merge_folders import CELLS
from tokenprune.sweeps.progress import prepare


@pytest.fixture
def asked(tmp_path):
    return load_sweep(sweep_file(tmp_path))


@pytest.fixture
def count(monkeypatch):
    """Batches that were really answered, by cell."""
    found, answer = [], evaluate.Evaluator.answer

    def spy(self, cell, questions):
        found.append(cell.label)
        return answer(self, cell, questions)

    monkeypatch.setattr(evaluate.Evaluator, "answer", spy)
    return found


def keys(asked):
    groups, folder = prepare(asked)
    return [each.key for group in groups for each in group.cells], folder.path


def test_cells_come_together_and_nothing_is_computed_twice(asked, count, tmp_path):
    whole = runner.sweep(load_sweep(tmp_path / "sweep.yaml", [f"output={tmp_path / 'whole'}"]))
    del count[:]
    (none, first, second, *rest), folder = keys(asked)
    alone = runner.sweep(asked, cell=first)
    assert alone.folder.path == folder / CELLS / first
    assert [record.cell for record in alone.records] == [none, first]
    assert len(count) == 2 * 4
    runner.sweep(asked, cell=second)  # takes the unpruned answers of the first
    assert len(count) == 3 * 4
    together = runner.sweep(asked)
    assert len(count) == 3 * 4 + len(rest) * 4
    assert answers(folder) == answers(whole.folder.path)
    assert [record.metrics for record in together.records] == [record.metrics for record in whole.records]
    runner.sweep(asked, cell=rest[-1])  # and back: what the sweep has, an agent need not compute
    assert len(count) == 3 * 4 + len(rest) * 4


def test_failed_and_foreign_cells_are_left_alone(asked, count):
    (_, first, *_), folder = keys(asked)
    own = runner.sweep(asked, cell=first).folder
    lines = [json.loads(line) for line in own.results.path.read_text().splitlines()]
    own.results.path.write_text(
        "".join(json.dumps(line | {"status": "failed", "error": "no"}) + "\n" for line in lines)
    )
    del count[:]
    outcome = runner.sweep(asked)
    assert len(count) == 5 * 4
    assert not outcome.failed
    assert folder == outcome.folder.path


def test_an_unknown_cell(asked):
    (_, first, *_), _ = keys(asked)
    with pytest.raises(
        ConfigError, match=rf"no cell '{first[:-1]}'; --dry-run shows their keys; did you mean '{first}'"
    ):
        runner.sweep(asked, cell=first[:-1])
    with pytest.raises(ConfigError, match="no cell ''; --dry-run shows their keys"):  # not all of them
        runner.sweep(asked, cell="")
