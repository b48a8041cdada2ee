"""A study from its configuration to its results, on a tiny model of random weights."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from study import measurements
from study.config import GridConfig, StudyConfig
from study.entered import Entered
from study.results import load, save
from study.run import shapes, study

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError, DataError, ModelError
from tokenprune.engine.session import Session
from tokenprune.policies.divergence import Batch, Objective
from tokenprune.pruners.dop import DOP
from tokenprune.pruners.dop.depths import Depths
from tokenprune.sweeps.build import build_base
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava

QUESTIONS = {"validation": Scenes(split="validation", num_samples=5), "test": Scenes(split="test", num_samples=5)}
CONFIG = StudyConfig(
    validation=Part("scenes", {"split": "validation", "num_samples": 5}),
    test=Part("scenes", {"split": "test", "num_samples": 5}),
    bases=(GridConfig(pruner=Part("divprune"), tokens=(6, 25)), GridConfig(pruner=Part("random"), tokens=(6,))),
    greedy=(6,),
    budgets=(8, 12),
    samples=3,
    batch_size=2,
    max_new_tokens=3,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelConfig(name="llava", path=str(save_llava(tmp_path_factory.mktemp("llava"), clip=False)))


@pytest.fixture(scope="module")
def session(model):
    return build_base(model, Part("divprune"))[0].load()


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """The configuration of a finished study, and its file."""
    config = dataclasses.replace(CONFIG, model=model, output=str(tmp_path_factory.mktemp("studies")))
    return config, study(config)


@pytest.fixture
def encoded(monkeypatch):
    """How many batches were encoded."""
    counter, encode = itertools.count(), Session.encode

    def counting(self, *rest):
        next(counter)
        return encode(self, *rest)

    monkeypatch.setattr(Session, "encode", counting)
    return counter


def test_shapes_are_all_pairs_that_do_different_work():
    assert len(shapes(6)) == 21
    found = {(one.attention, one.mlp) for one in shapes(3)}
    assert found == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    every = {Depths(attention=a, mlp=m, keep=1).normalised(3) for a in range(1, 4) for m in range(4)}
    assert set(shapes(3)) == every


@pytest.mark.parametrize(("keep", "expected"), [(6, {False}), (25, {True, False})])  # so that equality says something
def test_an_entered_batch_is_what_dop_does(session, keep, expected):
    """Its divergences and answers are those of the pruner of the same depths, run by itself."""
    samples, base = QUESTIONS["test"].samples(), build_base(ModelConfig(), Part("divprune"))[2]
    forced = Batch(session, samples, Objective(teacher_forced=True, max_new_tokens=3), frozenset())
    first, budget = Batch(session, samples, Objective(), frozenset()), Budget(keep_tokens=keep)
    entered, seen = Entered(forced, base, budget), set()
    unpruned = session.generate(forced.whole, max_new_tokens=3).output
    for depths in shapes(session.adapter.spec.llm.layers):
        plan = measurements.operations(depths.plan(session.adapter.spec, 1).active[..., 1].numpy())
        pruner = DOP.of(base, dataclasses.replace(depths, keep=keep))
        found = entered.distances(plan)
        assert torch.allclose(found.teacher_forced, forced.pruned(pruner, budget), atol=1e-5)
        assert torch.allclose(found.first_token, first.pruned(pruner, budget), atol=1e-5)
        prepared = forced.prepared
        pruned = session.prune_inputs(prepared.inputs, pruner, budget, prepared.questions)
        answers = session.generate(pruned, max_new_tokens=3).output
        assert entered.answers(plan, 3) == answers
        assert found.same.tolist() == [a == b for a, b in zip(answers, unpruned, strict=True)]
        seen |= {bool(same) for same in found.same}
    assert seen == expected


def test_results(done, session):
    config, path = done
    header, rows = load(path)
    layers = session.adapter.spec.llm.layers
    number = len(shapes(layers))
    assert (header.layers, header.visual_tokens) == (layers, 25)
    assert header.validation == tuple(sample.kind for sample in QUESTIONS["validation"].samples())
    assert header.test == tuple(sample.kind for sample in QUESTIONS["test"].samples())
    sets = [(row.set, row.base, row.tokens) for row in rows]
    for key in (("depth_wise", "divprune", 6), ("depth_wise", "divprune", 25), ("depth_wise", "random", 6)):
        assert sets.count(key) == number
    base = build_base(config.model, Part("divprune"))[2]
    validation = QUESTIONS["validation"].samples()
    batch = Batch(session, validation, Objective(), frozenset())
    for row in rows[:number:3]:
        depths = Depths(attention=row.attention, mlp=row.mlp, keep=6).normalised(layers)
        assert np.array_equal(row.active, depths.plan(session.adapter.spec, 25).active[..., 1].numpy())
        alone = batch.pruned(DOP.of(base, depths), Budget(keep_tokens=6))
        assert row.first_token == pytest.approx(alone.numpy(), rel=2e-3, abs=1e-5)  # half precision
        assert row.divergence == pytest.approx(float(alone.mean()), rel=2e-3, abs=1e-5)
    whole = next(row for row in rows if (row.attention, row.mlp, row.tokens) == (layers, layers - 1, 25))
    assert whole.divergence == pytest.approx(0, abs=1e-5)
    assert whole.same.all()
    assert header.budgets[8] < header.budgets[12]
    costs = {row.name: row.flops for row in rows[:number]}
    assert costs[f"({layers}, {layers - 1}, 6)"] == max(costs.values()) < header.budgets[8]


def test_answers_are_scored_by_the_task(done, model, monkeypatch, tmp_path):
    """Nothing that random weights say is right; a task that accepts every other answer gives every other bit."""
    _, path = done
    assert not any(row.right.any() for row in load(path)[1])
    order = {sample.id: at for at, sample in enumerate(QUESTIONS["test"].samples())}
    monkeypatch.setattr(Scenes, "score", lambda self, sample, answer: float(order[sample.id] % 2))
    grid = (GridConfig(pruner=Part("random"), tokens=(6, 25)),)
    other = dataclasses.replace(CONFIG, model=model, bases=grid, greedy=(), output=str(tmp_path))
    for row in load(study(other))[1]:
        assert row.right.tolist() == [False, True, False, True, False]
        assert row.accuracy == 0.4


def test_greedy_paths(done, session):
    config, path = done
    _, rows = load(path)
    base = build_base(config.model, Part("divprune"))[2]
    samples = QUESTIONS["validation"].samples()[: config.samples]
    batch = Batch(session, samples, Objective(teacher_forced=True, max_new_tokens=3), frozenset())
    entered = Entered(batch, base, Budget(keep_tokens=6))
    for rule in ("free", "depth_wise"):
        steps = [row for row in rows if row.set == f"greedy_{rule}"]
        assert len(steps) > 3
        assert steps[-1].active.sum() == 1
        assert all((a.active >= b.active).all() and a.flops > b.flops for a, b in itertools.pairwise(steps))
        journal = measurements.Journal(path.with_name("measurements.jsonl")).read()
        noted = [line for line in journal if line["what"] == "step" and line["rule"] == rule]
        for line, row in zip(noted, steps, strict=True):
            measured = entered.distances(measurements.operations(row.active)).first_token.mean()
            assert line["divergence"] == pytest.approx(float(measured), rel=1e-3, abs=1e-6)
            assert line["cost"] == row.flops


def test_again_measures_nothing(done, encoded):
    config, path = done
    before = path.read_bytes()
    assert study(config) == path
    assert next(encoded) == 0
    assert path.read_bytes() == before


@pytest.mark.full
def test_a_study_that_is_stopped_goes_on(done, encoded, tmp_path):
    """Half a line is lost, and the rest of the journal is measured again, to the same results."""
    config, path = done
    journal, target = path.with_name("measurements.jsonl"), tmp_path / path.parent.name / "measurements.jsonl"
    target.parent.mkdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = next(at for at, line in enumerate(lines) if b'"step"' in line) + 2  # in the middle of a path
    target.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    again = study(dataclasses.replace(config, output=str(tmp_path)))
    assert again.parent == target.parent
    assert load(again)[0] == load(path)[0]
    assert again.read_bytes().splitlines()[1:] == path.read_bytes().splitlines()[1:]  # the first names the folder
    written = target.read_bytes().splitlines(keepends=True)
    assert [line[:60] for line in written] == [line[:60] for line in lines]
    assert 0 < next(encoded) < 20


@pytest.mark.full
def test_other_code_is_measured_anew(done, encoded, monkeypatch):
    config, path = done
    small = dataclasses.replace(config, greedy=())
    before = path.read_bytes()
    monkeypatch.setattr("study.run.provenance.code_hash", lambda *classes: "other")
    study(small)
    assert next(encoded) > 0
    monkeypatch.undo()
    study(config)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bases": (GridConfig(pruner=Part("divprune"), tokens=(6, 30)),)}, "30 visual tokens cannot be kept"),
        ({"bases": (GridConfig(pruner=Part("divprune"), tokens=(6, 12)),)}, "one of them must hold 25 visual tokens"),
        ({"budgets": (5,)}, "all of them must hold a number of visual tokens within the least budget, 5"),
        ({"greedy": (12,)}, "the first base must hold 12 visual tokens too"),
        ({"samples": 6}, "samples is 6, but there are 5"),
        ({"bases": (GridConfig(pruner=Part("fastv"), tokens=(6, 25)),)}, "'fastv': policies are studied only over one"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_weights_load(model, monkeypatch, tmp_path, changes, message):
    monkeypatch.setattr("tokenprune.engine.loading.Checkpoint.load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match=message):
        study(dataclasses.replace(CONFIG, model=model, output=str(tmp_path), **changes))


def test_questions_that_the_model_cannot_be_asked_are_refused_before_weights_load(model, monkeypatch, tmp_path):
    monkeypatch.setattr("tokenprune.engine.loading.Checkpoint.load", lambda self: pytest.fail("weights were loaded"))
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "is <image> a star ?", "answer": "no"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    task = Part("folder", {"path": str(tmp_path / "q.jsonl")})
    asked = dataclasses.replace(CONFIG, model=model, output=str(tmp_path), test=task)
    with pytest.raises(ModelError, match=r"q\.jsonl line 1: '<image>' is a mark of the prompt"):
        study(asked)


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        study(dataclasses.replace(CONFIG, model=model, output=str(tmp_path / "file")))


def test_results_survive_the_file(done, tmp_path):
    _, path = done
    header, rows = load(path)
    save(tmp_path / "again.jsonl", header, rows, {}, ())
    header_again, rows_again = load(tmp_path / "again.jsonl")
    assert header_again == header
    for one, two in zip(rows, rows_again, strict=True):
        for field in dataclasses.fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(two, field.name))


@pytest.mark.parametrize("content", ["", "{}\n", '{"layers": 4}\n', "[1]\n", "nonsense\n{}\n"], ids=repr)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DataError):
        load(path)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "missing.jsonl")
