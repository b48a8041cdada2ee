"""What a worker tells: refusals, failures and memory that runs out."""

import dataclasses

import pytest
import torch

from tokenprune.core.errors import ModelError
from tokenprune.sweeps import evaluate
from tokenprune.sweeps.grid import parse_sweep
from tokenprune.sweeps.launch.base import Answered, Failed, Halved, Measured
from tokenprune.sweeps.launch.worker import Worker
from tokenprune.sweeps.progress import job_of, prepare, states
from tokenprune.sweeps.store import RunFolder
from tokenprune.testing.checkpoints import save_llava

SWEEP = {
    "task": {"name": "scenes", "num_samples": 8},
    "grid": {"pruner": ["uniform", "divprune"]},
    "budget": {"keep_tokens": 5},
    "batch_size": 8,
    "max_new_tokens": 1,
    "timing_repeats": 0,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    groups, _ = prepare(parse_sweep(SWEEP | {"model": {"name": "llava", "path": str(save_llava(folder))}}))
    return job_of(groups[0], states(groups, RunFolder(folder / "runs"), False))


def told(job):
    return list(Worker().run(job))


def key_of(job, label):
    return next(key for key, wanted in job.cells.items() if wanted.label == label)


def answered(events):
    """Of every cell, the sizes of its batches, and the questions."""
    found = {}
    for event in events:
        if isinstance(event, Answered):
            found.setdefault(event.cell, []).append([line["sample"] for line in event.lines])
    return found


def test_cells_answer_and_are_measured(job):
    events = told(job)
    assert {key: [len(part) for part in parts] for key, parts in answered(events).items()} == {
        k: [8] for k in job.cells
    }
    assert [event.cell for event in events if isinstance(event, Measured)] == list(job.measured)
    assert len(events) == 2 * len(job.cells)


def test_split_jobs_do_the_same(job):
    def lines(events):
        return [(event.cell, event.lines) for event in events if isinstance(event, Answered)]

    two = dataclasses.replace(job, batches=(*job.batches, *job.batches))
    assert [len(part.batches) for part in two.split(1)] == [1, 1, 0]
    assert [bool(part.measured) for part in two.split(1)] == [False, False, True]
    assert lines(told(two)) == [line for part in two.split(1) for line in lines(told(part))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "other"}, "other weights"),
        ({"data": "other"}, "other questions"),
        ({"code": {}}, "other code of tokenprune or a pruner"),
    ],
)
def test_what_differs_from_the_driver_is_refused(job, changes, words):
    with pytest.raises(ModelError, match=f"a worker has {words}"):
        told(dataclasses.replace(job, origin=dataclasses.replace(job.origin, **changes)))


def test_a_cell_that_is_out_of_memory_halves_its_batch(job, monkeypatch):
    answer, key = evaluate.Evaluator.answer, key_of(job, "divprune")

    def small(self, cell, asked):
        if cell.label == "divprune" and len(asked.samples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, cell, asked)

    whole = answered(told(job))
    monkeypatch.setattr(evaluate.Evaluator, "answer", small)
    events = told(dataclasses.replace(job, batches=(*job.batches, *job.batches)))
    assert [event.batch_size for event in events if isinstance(event, Halved)] == [4, 2]
    assert {event.cell for event in events if isinstance(event, Halved)} == {key}
    found = answered(events)
    assert [len(part) for part in found.pop(key)] == [2] * 8
    assert [name for part in answered(events)[key][:4] for name in part] == whole[key][0]
    assert all(parts == whole[other] * 2 for other, parts in found.items())


def test_images_that_do_not_fit_are_encoded_in_halves_for_all_cells(job, monkeypatch):
    ask = evaluate.Evaluator.ask

    def small(self, samples, cells):
        if len(samples) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return ask(self, samples, cells)

    monkeypatch.setattr(evaluate.Evaluator, "ask", small)
    events = told(job)
    assert [(event.cell, event.batch_size) for event in events if isinstance(event, Halved)] == [
        (k, 4) for k in job.cells
    ]
    assert {key: [len(part) for part in parts] for key, parts in answered(events).items()} == {
        key: [4, 4] for key in job.cells
    }


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no")], ids=["memory of one question", "any other"])
def test_a_failed_cell_stops_alone(job, monkeypatch, error):
    answer = evaluate.Evaluator.answer

    def failing(self, cell, asked):
        if cell.label == "uniform":
            raise error
        return answer(self, cell, asked)

    monkeypatch.setattr(evaluate.Evaluator, "answer", failing)
    events = told(dataclasses.replace(job, batches=(*job.batches, *job.batches)))
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.cell for event in failed] == [key_of(job, "uniform")]
    assert type(error).__name__ in failed[0].error
    assert answered(events).keys() == {event.cell for event in events if isinstance(event, Measured)}
    assert answered(events).keys() == job.cells.keys() - {key_of(job, "uniform")}
