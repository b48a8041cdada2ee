"""A run from its configuration to its files, on a tiny model of random weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from tokenprune.core.errors import BudgetError, DataError, TokenPruneError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.registry import Entry
from tokenprune.core.stages import PRE_LLM
from tokenprune.core.turn import only_picture
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.engine.session import Session
from tokenprune.pruners.base import PRUNERS, ScorePruner
from tokenprune.sweeps import evaluate, provenance, runner
from tokenprune.sweeps.build import build
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.tracking import TRACKERS, Tracked, Tracker
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(**changes):
        values = {
            "model": {"name": "llava", "path": checkpoint},
            "task": {"name": "scenes", "num_samples": 7},
            "pruner": "uniform",
            "budget": {"keep_tokens": [10, 5]},
            "batch_size": 3,
            "max_new_tokens": 2,
            "timing_repeats": 0,
            "output": str(tmp_path / "runs"),
        }
        return parse_config(values | changes)

    return make


@pytest.fixture
def answered(monkeypatch):
    """What the model was really asked, in order: one list of sample ids for each batch."""
    batches, answer = [], evaluate.Evaluator.answer

    def spy(self, cell, asked):
        batches.append((cell.label, str(cell.budget), [sample.id for sample in asked.samples]))
        return answer(self, cell, asked)

    monkeypatch.setattr(evaluate.Evaluator, "answer", spy)
    return batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(ScorePruner):
    """Fails on one budget."""

    def score(self, tokens):
        return torch.zeros(tokens.features.shape[:2])

    def _select(self, tokens, k):
        if k == 10:
            raise RuntimeError("no luck with ten\nsecond line")
        return super()._select(tokens, k)


@pytest.fixture
def faulty(monkeypatch):
    PRUNERS.names()
    monkeypatch.setitem(PRUNERS._entries, "faulty", Entry("faulty", Faulty, "", None))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_files_of_a_run(config):
    outcome = runner.run(config())
    assert not outcome.failed
    cells = [("none", {}), *((label, {"keep_tokens": k}) for label in ("random", "uniform") for k in (10, 5))]
    assert [(record.label, record.budget) for record in outcome.records] == cells
    names = {".lock", "config.yaml", "results.jsonl", "samples.jsonl"}
    assert {path.name for path in outcome.folder.path.iterdir()} == names
    assert len(lines(outcome.folder.results.path)) == 5
    answers = lines(outcome.folder.samples.path)
    assert len(answers) == 5 * 7
    for record in outcome.records:
        own = [line["sample"] for line in answers if line["cell"] == record.cell]
        assert sorted(own) == [sample.id for sample in outcome.samples]
    assert answers[0].keys() == {
        *("cell", "sample", "kind", "unit", "question", "truth", "answer", "correct", "unparsed"),
        *("visual_tokens", "text_tokens", "grid", "evidence_kept", "stages"),
    }


def test_metrics(config):
    outcome = runner.run(config(timing_repeats=1))
    answers = outcome.folder.answers()
    for record in outcome.records:
        metrics, cell = record.metrics, list(answers[record.cell].values())
        assert metrics["questions"] == 7
        assert metrics["accuracy"] == sum(line["correct"] for line in cell) / 7
        assert metrics["visual_tokens"] == 25
        assert metrics["kept_tokens"] == metrics["average_tokens"] == (record.budget.get("keep_tokens") or 25)
        assert metrics["grid"] == [5, 5]
        assert metrics["prefill_time_ratio"] > 0
        assert metrics["vision_seconds"] > 0
        assert (metrics["selection_seconds"] > 0) == bool(record.budget)
        assert record.seed == 0
        assert record.seconds > 0
        stages = [[(s["stage"], len(s["kept"]), s["tokens"]) for s in line["stages"]] for line in cell]
        keep = record.budget.get("keep_tokens")
        assert stages == [[("pre_llm", keep, keep)] if keep else []] * 7
    unpruned, *pruned = [record.metrics for record in outcome.records]
    assert unpruned["evidence_kept"] == 1.0
    assert all(0 <= m["evidence_kept"] < 1 for m in pruned)


def test_flops_and_cache_are_those_of_the_prompts(config):
    outcome = runner.run(config(task={"name": "scenes", "num_samples": 1}))
    spec = build(config()).model.spec
    per_token = 2 * 4 * spec.llm.layers * spec.llm.kv_heads * spec.llm.head_dim  # K and V, bytes of float32
    (text,) = {line["text_tokens"] for cell in outcome.folder.answers().values() for line in cell.values()}
    for record in outcome.records:
        keep = int(record.metrics["kept_tokens"])
        plan = OperationPlan.drop_at(spec, [PRE_LLM], [keep], 25)
        assert record.metrics["llm_prefill_flops"] == llm_prefill_flops(spec, plan, text)
        assert record.metrics["kv_cache_bytes"] == per_token * (keep + text)


def test_a_budget_of_flops_is_not_exceeded_by_what_is_spent(config):
    """Of prompts with as much text; the largest number of tokens that fits stays."""
    one = {"name": "scenes", "num_samples": 1}
    keep = runner.run(config(task=one, timing_repeats=0)).records[1]
    text, limit = int(keep.metrics["text_tokens"]), keep.metrics["llm_prefill_flops"]
    budget = {"flops": [limit, limit + 1.0, limit - 1.0], "text_tokens": text}
    records = runner.run(config(task=one, pruner="random", budget=budget)).records[1:]
    assert [record.metrics["kept_tokens"] for record in records] == [10, 10, 9]
    assert [record.budget for record in records] == [{"flops": f, "text_tokens": text} for f in budget["flops"]]
    assert records[0].metrics["llm_prefill_flops"] == limit


def test_text_tokens_are_counted_without_padding(config):
    lengths = {}
    for size in (1, 7):
        outcome = runner.run(config(batch_size=size))
        (cell,) = [r.cell for r in outcome.records if r.label == "none"]
        lengths[size] = {k: line["text_tokens"] for k, line in outcome.folder.answers()[cell].items()}
    assert lengths[1] == lengths[7]
    assert len(set(lengths[1].values())) > 1


def test_a_rerun_skips_what_is_finished(config, answered):
    first = runner.run(config())
    before = first.folder.results.path.read_bytes(), first.folder.samples.path.read_bytes()
    assert len(answered) == 5 * 3
    answered.clear()
    second = runner.run(config())
    assert answered == []
    assert [record.cell for record in second.records] == [record.cell for record in first.records]
    assert (first.folder.results.path.read_bytes(), first.folder.samples.path.read_bytes()) == before


def test_an_interrupted_run_goes_on_within_the_cell(config, answered, monkeypatch):
    generate, calls = Session.generate, []

    def interrupted(self, inputs, **options):
        calls.append(inputs)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return generate(self, inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config())
    before = list(answered)
    answered.clear()
    outcome = runner.run(config())
    assert len(before) == 8
    assert answered[0] == before[-1]  # the first batch of all five, and the second of two of them, were on the disk
    assert len(answered) == 15 - 7
    fresh = runner.run(config(), fresh=True)
    for a, b in zip(outcome.records, fresh.records, strict=True):
        assert a.metrics["accuracy_by_kind"] == b.metrics["accuracy_by_kind"]
        assert a.metrics["evidence_kept"] == b.metrics["evidence_kept"]


def test_half_written_lines_cost_only_themselves(config, answered, caplog):
    outcome = runner.run(config())
    for journal in (outcome.folder.results, outcome.folder.samples):
        content = journal.path.read_bytes()
        journal.path.write_bytes(content[:-20])
    last = answered[-1]
    answered.clear()
    again = runner.run(config())
    assert answered == [last]  # as it was before, with what the other questions of the batch are
    assert "half-written" in caplog.text
    assert [r.metrics["accuracy"] for r in again.records] == [r.metrics["accuracy"] for r in outcome.records]
    assert len(lines(outcome.folder.results.path)) == 5
    assert len(lines(outcome.folder.samples.path)) == 35


def test_fresh_redoes_and_keeps_the_old(config, answered):
    runner.run(config())
    answered.clear()
    outcome = runner.run(config(), fresh=True)
    assert len(answered) == 5 * 3
    assert len(lines(outcome.folder.path / "results.1.jsonl")) == 5
    assert len(lines(outcome.folder.path / "samples.1.jsonl")) == 35


def test_other_code_weights_or_data_make_results_stale(config, answered, monkeypatch):
    runner.run(config())
    for name in ("code_hash", "checkpoint_hash", "data_hash"):
        answered.clear()
        with monkeypatch.context() as patch:
            patch.setattr(provenance, name, lambda *args: "other")
            runner.run(config())
        assert len(answered) == 5 * 3, name


def test_a_failing_cell_is_recorded_and_the_others_go_on(config, faulty, answered, caplog):
    outcome = runner.run(config(pruner="faulty"))
    assert [record.status for record in outcome.records] == ["ok", "ok", "ok", "failed", "ok"]
    (failed,) = outcome.failed
    assert "RuntimeError: no luck with ten" in failed.error
    assert failed.metrics == {}
    assert "faulty keep_tokens=10 failed" in caplog.text
    answered.clear()
    assert len(runner.run(config(pruner="faulty")).failed) == 1
    assert answered == []
    assert len(runner.run(config(pruner="faulty"), retry_failed=True).failed) == 1
    assert {(label, budget) for label, budget, _ in answered} == {("faulty", "keep_tokens=10")}


def test_retention_is_relative_to_this_run(config, monkeypatch):
    right = {"none": 1.0, "random": 0.5, "uniform": 0.25}

    def answer(self, cell, asked):
        return [
            {
                "sample": s.id,
                "kind": s.kind,
                "answer": cell.label,
                "correct": right[cell.label],
                "unparsed": False,
                "text_tokens": 9,
                "visual_tokens": 25,
                "grid": [5, 5],
                "evidence_kept": None,
            }
            | {"stages": [{"stage": "pre_llm", "kept": [0], "tokens": 1}] if cell.budget else []}
            for s in asked.samples
        ]

    monkeypatch.setattr(evaluate.Evaluator, "answer", answer)
    outcome = runner.run(config())
    assert [record.metrics["retention"] for record in outcome.records] == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert {record.metrics["evidence_kept"] for record in outcome.records} == {None}


def test_everything_is_checked_before_anything_is_computed(config, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tokenprune.engine.loading.AutoModelForImageTextToText.from_pretrained", refuse)
    with pytest.raises(BudgetError, match="exceeds the 25"):
        runner.run(config(budget={"keep_tokens": 26}))
    assert not Path(config().output).exists()
    Path(config().output).write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        runner.run(config())


def test_bad_images_stop_a_run_before_the_model_loads(config, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"image": "none.png", "question": "?", "answer": "a"}\n')
    with pytest.raises(TokenPruneError, match=r"none\.png"):
        runner.run(config(task={"name": "folder", "path": str(tmp_path / "q.jsonl")}))


class Recorder(Tracker):
    """Keeps what it is told."""

    events: list = []  # noqa: RUF012

    def start(self, group, folder):
        self.events.append(("start", group, folder.is_dir()))
        outer = self

        class Told(Tracked):
            answers = 2

            def cell(self, finished):
                drawn = [finished.picture(line).shape[2] for line in finished.answers]
                outer.events.append(("cell", finished.id, finished.label, bool(finished.metrics), drawn))

            def finish(self, files=()):
                outer.events.append(("finish", [file.name for file in files]))

        return Told()


@dataclasses.dataclass(frozen=True)
class RecorderConfig(Recorder):
    """Registered for a test."""


def test_the_tracker_is_told_of_every_cell_in_every_session(config, faulty, monkeypatch):
    monkeypatch.setitem(TRACKERS._entries, "recorder", Entry("recorder", RecorderConfig, "", None))
    for _ in range(2):
        Recorder.events.clear()
        outcome = runner.run(config(pruner="faulty", tracking="recorder"))
        told = [
            ("cell", r.cell, f"{r.label} keep_tokens={r.budget['keep_tokens']}" if r.budget else r.label, True, [3, 3])
            if r.status == "ok"
            else ("cell", r.cell, f"{r.label} keep_tokens={r.budget['keep_tokens']}", False, [])
            for r in outcome.records
        ]
        assert Recorder.events == [("start", outcome.folder.path.name, True), *told, ("finish", [])]
    Recorder.events.clear()
    outcome.track()
    assert Recorder.events[1] == ("finish", ["config.yaml", "results.jsonl", "samples.jsonl"])


def test_a_batch_does_not_change_what_is_kept(config):
    kept = []
    for size in (1, 7):
        outcome = runner.run(config(pruner="cdpruner", batch_size=size))
        cells = {r.cell: (r.label, str(r.budget)) for r in outcome.records}
        answers = outcome.folder.answers()
        kept.append({(cells[c], s): line["stages"] for c in cells for s, line in answers[c].items()})
    assert kept[0] == kept[1]


def test_task_without_kinds_or_boxes(config, tmp_path):
    for index, sample in enumerate(Scenes(num_samples=2).samples()):
        only_picture(sample.turn).save(tmp_path / f"{index}.png")
    rows = [{"image": f"{i}.png", "question": "what color ?", "answer": "red"} for i in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = runner.run(config(task={"name": "folder", "path": str(tmp_path / "q.jsonl")}))
    assert {record.metrics["evidence_kept"] for record in outcome.records} == {None}
    assert [record.metrics["accuracy_by_kind"] for record in outcome.records] == [{}] * 5


@pytest.mark.parametrize(
    ("conditioning", "notes"),
    [
        ("prompt_embedding", []),
        (
            "auto",
            [
                "prompt_embeds stands in for clip_image_embeds, which this model does not give",
                "prompt_mask stands in for clip_text_embeds, which this model does not give",
            ],
        ),
    ],
)
def test_what_stands_in_for_a_signal_is_noted(config, tmp_path, conditioning, notes):
    alone = save_llava(tmp_path / "llava")
    shutil.rmtree(alone / "clip")  # its text tower
    pruner = {"name": "cdpruner", "conditioning": conditioning}
    asked = {"model": {"name": "llava", "path": str(alone)}, "task": {"name": "scenes", "num_samples": 2}}
    records = runner.run(config(pruner=pruner, budget={"keep_tokens": 10}, **asked))
    assert [record.notes for record in records.records if record.label.startswith("cdpruner")] == [notes]
    assert not any(record.notes for record in records.records if record.label in ("none", "random"))
