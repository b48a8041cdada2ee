"""What the driver makes of a launcher whose jobs run twice, as those of a lost machine do."""

import logging
from dataclasses import dataclass

import pytest
from programs import answers, sweep_file

from tokenprune.core.registry import Entry
from tokenprune.sweeps import evaluate, runner
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.launch.base import LAUNCHERS
from tokenprune.sweeps.launch.local import Local


@dataclass(frozen=True, kw_only=True)
class Twice(Local):
    """Every event comes again."""

    def run(self, jobs):
        for event in super().run(jobs):
            yield event
            yield event


@pytest.fixture
def twice(monkeypatch):
    LAUNCHERS.names()
    monkeypatch.setitem(LAUNCHERS._entries, "twice", Entry("twice", Twice, "", None))
    return "launcher.name=twice"


def test_what_comes_twice_counts_once(tmp_path, twice):
    path = sweep_file(tmp_path)
    once = runner.sweep(load_sweep(path))
    again = runner.sweep(load_sweep(path, [twice, f"output={tmp_path / 'twice'}"]))
    assert answers(again.folder.path) == answers(once.folder.path)
    assert [record.metrics for record in again.records] == [record.metrics for record in once.records]
    assert [record.answered for record in again.records] == [12] * 5
    assert len(again.folder.results.read()) == 5


def test_a_failure_that_comes_twice_is_said_once(tmp_path, twice, monkeypatch, caplog):
    answer = evaluate.Evaluator.answer

    def failing(self, cell, asked):
        if cell.label == "divprune":
            raise ValueError("no")
        return answer(self, cell, asked)

    monkeypatch.setattr(evaluate.Evaluator, "answer", failing)
    with caplog.at_level(logging.ERROR, "tokenprune"):
        outcome = runner.sweep(load_sweep(sweep_file(tmp_path), [twice]))
    assert len(outcome.failed) == 2
    assert [message.count("failed: ValueError: no") for message in caplog.messages] == [1, 1]
