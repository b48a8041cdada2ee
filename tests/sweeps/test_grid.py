"""A sweep file from its YAML to its runs, and the sweep itself on a tiny model of random weights."""

import multiprocessing
import random
import signal
import time

import pytest
from programs import sweep_file, work

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, DataError, TokenPruneError
from tokenprune.sweeps import runner
from tokenprune.sweeps.grid import load_sweep, parse_sweep
from tokenprune.sweeps.store import RunFolder
from tokenprune.testing.checkpoints import save_llava

BASE = {"pruner": "uniform", "budget": {"keep_tokens": 10}, "task": {"name": "scenes", "num_samples": 7}}
VARIED = {"pruner": ["uniform", {"name": "cdpruner", "conditioning": "none"}], "budget.keep_tokens": [10, 5]}


def points(**keys):
    return parse_sweep({**BASE, **keys}).runs


def test_grid_zip_and_seeds():
    runs = points(
        grid=VARIED, zip={"max_new_tokens": [2, 3, 4], "task.num_samples": [5, 6, 7]}, seeds=[0, 1], timing_repeats=0
    )
    assert len(runs) == 2 * 2 * 3 * 2
    assert {(run.max_new_tokens, run.task.options["num_samples"]) for run in runs} == {(2, 5), (3, 6), (4, 7)}
    assert {run.pruner.name for run in runs} == {"uniform", "cdpruner"}
    assert {run.budget[0].value for run in runs} == {10, 5}


def test_an_override_replaces_a_dotted_key(tmp_path):
    path = sweep_file(tmp_path)
    assert [run.budget for run in load_sweep(path, ["grid.budget.keep_tokens=[7]"]).runs] == [
        (Budget(keep_tokens=7),)
    ] * 2


def test_exclude():
    runs = points(grid=VARIED, exclude=[{"pruner": "cdpruner", "budget.keep_tokens": 5}])
    assert [(run.pruner.name, run.budget[0].value) for run in runs] == [
        ("uniform", 10),
        ("uniform", 5),
        ("cdpruner", 10),
    ]


def test_another_kind_of_budget_takes_the_place_of_the_first():
    assert [run.budget[0].kind for run in points(grid={"budget.average_tokens": [10, 5]})] == ["average_tokens"] * 2


def test_no_grid_is_one_run():
    assert len(points()) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {"budgit.keep_tokens": [1]}}, "'budgit'; did you mean 'budget'"),
        ({"grid": {}}, "grid must map dotted keys to lists"),
        ({"grid": {"pruner": []}}, "pruner is an empty list"),
        ({"grid": {"pruner": "uniform"}}, "pruner must be a list of values, got 'uniform'"),
        ({"zip": {"seed": [1, 2], "max_new_tokens": [1]}}, "needs lists of one length, got seed 2, max_new_tokens 1"),
        ({"grid": {"seed": [1]}, "seeds": [2]}, "'seed' is varied twice"),
        ({"grid": VARIED, "exclude": {"budget.keep_tokens": 7}}, "fits no point of the sweep"),
        ({"grid": VARIED, "exclude": {"pruner": ["uniform", "cdpruner"]}}, "leaves no point"),
        ({"grid": {"seed": list(range(101)), "max_new_tokens": list(range(1, 101))}}, "10,100 points.*add --yes"),
        ({"grid": {"output": ["a", "b"]}}, "cannot vary 'output'"),
    ],
    ids=str,
)
def test_mistakes(keys, message):
    with pytest.raises(TokenPruneError, match=message):
        points(**keys)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def sweep(checkpoint):
    def make(output, **changes):
        settings = {"model": {"name": "llava", "path": checkpoint}, "grid": VARIED, "name": "s", "output": str(output)}
        return parse_sweep({**BASE, "timing_repeats": 0, "max_new_tokens": 2, "batch_size": 3, **settings, **changes})

    return make


def left(folder):
    """What a sweep leaves, without times: table, answers, and how often each was journalled."""
    lines = sorted(
        (line["cell"], line["sample"], line["answer"], str(line["stages"])) for line in folder.samples.read()
    )
    table = sorted((record.label, str(record.budget), str(record.metrics)) for record in folder.records())
    return table, lines


def test_cells_are_shared_and_none_and_random_are_there(sweep, tmp_path):
    outcome = runner.sweep(sweep(tmp_path))
    assert [(record.label, record.budget.get("keep_tokens")) for record in outcome.records] == [
        ("none", None),
        *[(name, keep) for name in ("random", "uniform", "cdpruner conditioning=none") for keep in (10, 5)],
    ]
    assert not outcome.failed
    assert len(outcome.folder.samples.read()) == 7 * len(outcome.records)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_matter(sweep, tmp_path, batch_size):
    first = left(runner.sweep(sweep(tmp_path / "a")).folder)
    tables, lines = left(runner.sweep(sweep(tmp_path / "b", batch_size=batch_size)).folder)
    assert tables == first[0]
    assert [line[1:] for line in lines] == [line[1:] for line in first[1]]


def test_a_second_sweep_in_the_folder_is_refused(sweep, tmp_path):
    folder = runner.sweep(sweep(tmp_path)).folder
    with RunFolder(folder.path).writing({}), pytest.raises((ConfigError, DataError), match="wait"):
        runner.sweep(sweep(tmp_path))


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_random_moments_it_leaves_what_an_undisturbed_sweep_leaves(tmp_path, kills):
    path = sweep_file(tmp_path)
    server = multiprocessing.get_context("forkserver")  # forks a process without threads, which do not survive that
    server.set_forkserver_preload(["programs", "tokenprune.sweeps.runner", "transformers.models.llava.modeling_llava"])

    def child(folder):
        process = server.Process(target=work, args=(path, tmp_path / folder))
        process.start()
        return process

    for folder in ("warm", "undisturbed"):  # the first one waits for the server's imports
        start, process = time.perf_counter(), child(folder)
        process.join()
        assert process.exitcode == 0
    duration, draw = time.perf_counter() - start, random.Random(0)
    whole, killed, folders = left(RunFolder(tmp_path / "undisturbed/tiny")), 0, 0
    while killed < kills or process.exitcode:
        process = child(str(folders))
        process.join(draw.uniform(0.2, 0.9) * duration if killed < kills else None)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:  # whole in spite of all kills before
            assert left(RunFolder(tmp_path / str(folders) / "tiny")) == whole
            folders += 1
    assert folders
