"""Scores made again from answers: other rules, other numbers, and nothing else changes."""

import json
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.core.errors import DataError
from tokenprune.engine.loading import Checkpoint
from tokenprune.sweeps import runner
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.rescore import rescore
from tokenprune.sweeps.store import RunFolder
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava

SCORED = {
    "accuracy",
    "accuracy_standard_error",
    "accuracy_by_kind",
    "score",
    "retention",
    "scored",
    "unparsed",
    "scores",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("run")
    values = {
        "model": {"name": "llava", "path": str(save_llava(tmp / "llava"))},
        "task": {"name": "scenes", "num_samples": 6},
        "pruner": "uniform",
        "budget": {"keep_tokens": 5},
        "timing_repeats": 0,
        "output": str(tmp / "runs"),
    }
    return runner.run(parse_config(values)).folder.path


@pytest.fixture
def folder(finished, tmp_path):
    return RunFolder(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def no_model(request, monkeypatch):
    """Nothing loads weights once the run is there."""
    request.getfixturevalue("finished")

    def refuse(self):
        raise AssertionError("a model loads")

    monkeypatch.setattr(Checkpoint, "load", refuse)


def first_is_right(self, sample, answer):
    return 1.0 if sample.id.endswith("-0") else 0.25


def test_the_same_rules_give_the_same_records(folder):
    before, answers = folder.records(), folder.samples.read()
    assert rescore(folder) == before == folder.records()
    assert folder.samples.read() == answers
    assert {path.name for path in folder.path.glob("*.jsonl")} == {
        *("results.jsonl", "samples.jsonl", "results.1.jsonl", "samples.1.jsonl")
    }


def test_other_rules_give_other_scores_and_nothing_else(folder, monkeypatch):
    before = folder.records()
    monkeypatch.setattr(Scenes, "score", first_is_right)
    monkeypatch.setattr(Scenes, "unparsed", lambda self, sample, answer: sample.id.endswith("-1"))
    after = rescore(folder)
    assert folder.records() == after
    for old, new in zip(before, after, strict=True):
        assert new.metrics["accuracy"] == new.metrics["score"] == (1 + 5 / 4) / 6
        assert new.metrics["unparsed"] == 1 / 6
        assert new.metrics["retention"] == 1
        assert {k: v for k, v in new.metrics.items() if k not in SCORED} == {
            k: v for k, v in old.metrics.items() if k not in SCORED
        }
        assert (new.cell, new.config, new.seconds) == (old.cell, old.config, old.seconds)
    assert {line["correct"] for line in folder.samples} == {1.0, 0.25}
    assert RunFolder(folder.path).records() == after
    old_lines = [json.loads(line) for line in (folder.path / "samples.1.jsonl").read_text().splitlines()]
    assert {line["correct"] for line in old_lines} <= {0.0, 1.0}


def test_the_command(folder, monkeypatch):
    monkeypatch.setattr(Scenes, "score", first_is_right)
    result = CliRunner().invoke(app, ["rescore", str(folder.path)])
    assert result.exit_code == 0, result.output
    assert "37.5" in result.output
    assert "tokenprune report" in result.output


def test_a_question_that_is_another_one_changes_nothing(folder, monkeypatch):
    before = folder.samples.path.read_bytes(), folder.results.path.read_bytes()
    samples = Scenes(num_samples=6, seed=1).samples()
    monkeypatch.setattr(Scenes, "samples", lambda self: samples)
    with pytest.raises(DataError, match="the task of 'none' has no question 'test-0-"):
        rescore(folder)
    assert (folder.samples.path.read_bytes(), folder.results.path.read_bytes()) == before
    assert len([*folder.path.glob("*.jsonl")]) == 2


def test_a_question_of_other_words_changes_nothing(folder, monkeypatch):
    samples = [replace(sample, question="why ?") for sample in Scenes(num_samples=6).samples()]
    monkeypatch.setattr(Scenes, "samples", lambda self: samples)
    with pytest.raises(DataError, match="the task of 'none' has another question 'test-0-"):
        rescore(folder)


def test_answers_that_are_missing_are_named(folder):
    lines = folder.samples.path.read_text().splitlines(keepends=True)
    folder.samples.path.write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="the journal holds 5 of 6 answers of 'uniform'"):
        rescore(folder)


def test_no_run_is_one_sentence(tmp_path):
    for path, said in ((tmp_path / "none", "there is no folder"), (tmp_path, "cannot be read; is this the folder")):
        result = CliRunner().invoke(app, ["rescore", str(path)])
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())
