"""Cells without pruning come first where a protocol is named, and their records are told of at once."""

import dataclasses

import pytest

from tokenprune.sweeps import evaluate, runner
from tokenprune.sweeps.baseline_first import baseline_first
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.grid import parse_sweep
from tokenprune.sweeps.launch.base import Batch, Job, Origin, Wanted
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.testing.checkpoints import save_llava


def job(task, model="llava", batches=(("1", "2"), ("3",)), cells=("none", "a", "b")):
    keys = [f"{task}-{cell}" for cell in cells]
    return Job(
        model=ModelConfig(name=model, path="x"),
        task=Part(task),
        max_new_tokens=1,
        timing_repeats=0,
        cells={key: Wanted(key, key, Part("none"), None) for key in keys},
        batches=tuple(Batch(samples, tuple(keys)) for samples in batches),
        measured=tuple(keys),
        origin=Origin("w", "d", {key: f"code of {key}" for key in keys}),
    )


UNPRUNED = {"t-none", "u-none", "v-none"}


def test_all_tasks_of_a_model_then_the_rest():
    parts = baseline_first([job("t"), job("u"), job("v", model="qwen_vl")], UNPRUNED)
    assert [list(part.cells) for part in parts] == [
        ["t-none"],
        ["u-none"],
        ["t-a", "t-b"],
        ["u-a", "u-b"],
        ["v-none"],
        ["v-a", "v-b"],
    ]
    assert [part.model.name for part in parts] == ["llava"] * 4 + ["qwen_vl"] * 2


def test_each_answer_and_measurement_is_in_one_part():
    whole = job("t")
    first, rest = baseline_first([whole], UNPRUNED)
    assert first.batches == (Batch(("1", "2"), ("t-none",)), Batch(("3",), ("t-none",)))
    assert rest.batches == (Batch(("1", "2"), ("t-a", "t-b")), Batch(("3",), ("t-a", "t-b")))
    assert (first.measured, rest.measured) == (("t-none",), ("t-a", "t-b"))
    assert first.origin.code | rest.origin.code == whole.origin.code
    assert set(first.origin.code) == {"t-none"}


def test_what_is_left_to_do_may_be_one_part():
    left = job("t", cells=("a",))
    assert baseline_first([left], UNPRUNED) == [left]
    batches = (Batch(("1",), ("t-a",)),)  # the unpruned cell has answered, and is measured only
    first, rest = baseline_first([dataclasses.replace(job("t", cells=("none", "a")), batches=batches)], UNPRUNED)
    assert (first.batches, first.measured, rest.batches) == ((), ("t-none",), batches)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def answered(monkeypatch):
    """Labels of the cells in the order in which they answered batches."""
    labels, answer = [], evaluate.Evaluator.answer

    def spy(self, cell, asked):
        labels.append(cell.label)
        return answer(self, cell, asked)

    monkeypatch.setattr(evaluate.Evaluator, "answer", spy)
    return labels


@pytest.mark.parametrize("protocol", [None, "llava15"])
def test_a_sweep(checkpoint, tmp_path, answered, protocol):
    asked = parse_sweep(
        {
            "model": {"name": "llava", "path": checkpoint},
            "protocol": protocol,
            "pruner": "uniform",
            "budget": {"keep_tokens": 5},
            "batch_size": 2,
            "max_new_tokens": 2,
            "timing_repeats": 0,
            "output": str(tmp_path),
            "grid": {"task": [{"name": "scenes", "num_samples": 4, "seed": seed} for seed in (0, 1)]},
        }
    )
    told = []
    outcome = runner.sweep(asked, told=lambda record: told.append((record, len(answered))))
    assert [record.label for record, _ in told] == ["none", "none"]
    assert len(outcome.records) == 6
    assert len(answered) == 2 * 2 * 3  # two tasks of two batches, each answered once by three cells
    if protocol:
        assert answered[:4] == ["none"] * 4  # two batches of each task
        assert [number for _, number in told] == [2, 4]
        assert {record.config["protocol"] for record in outcome.records} == {"llava15"}
    else:
        assert answered[:3] == ["none", "random", "uniform"]
        assert all("protocol" not in record.config for record in outcome.records)
    told.clear()
    runner.sweep(asked, told=lambda record: told.append(record))
    assert told == []


def test_the_answers_are_those_of_one_part(checkpoint, tmp_path):
    found = []
    for name, protocol in (("one", None), ("two", "llava15")):
        outcome = runner.sweep(
            parse_sweep(
                {
                    "model": {"name": "llava", "path": checkpoint},
                    "task": {"name": "scenes", "num_samples": 5},
                    "protocol": protocol,
                    "pruner": "divprune",
                    "budget": {"keep_tokens": [8, 3]},
                    "batch_size": 2,
                    "max_new_tokens": 2,
                    "timing_repeats": 0,
                    "output": str(tmp_path / name),
                }
            )
        )
        lines = outcome.folder.answers()
        found.append({(cell, sample): line["answer"] for cell in lines for sample, line in lines[cell].items()})
    assert found[0] == found[1]
    assert len(found[0]) == 5 * 5
