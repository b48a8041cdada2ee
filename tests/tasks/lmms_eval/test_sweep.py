"""Benchmarks from the command line: sweeps, reports, scores made again, and mistakes."""

import json
import os
import subprocess
import sys

import pytest
import yaml

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]
TASKS = ("pope", "mme", "textvqa_val", "vqav2_val", "docvqa_val", "scienceqa")


def command(folder, *arguments, status=0):
    environment = {**os.environ, "COLUMNS": "300"}
    run = [sys.executable, "-m", "tokenprune", *arguments]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def write(folder, task, **changes):
    sweep = {
        "model": "embedded",
        "task": {"name": "lmms_eval", **task},
        "pruner": "divprune",
        "budget": {"keep_tokens": [72, 24]},
        "batch_size": 4,
        "timing_repeats": 0,
        "name": "all",
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep | changes))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, hub):
    """The folder of a sweep over several benchmarks."""
    folder = tmp_path_factory.mktemp("swept")
    write(folder, {"task": "pope", "root": str(hub)}, grid={"task.task": list(TASKS)})
    command(folder, "sweep", "sweep.yaml")
    return folder


def records(folder):
    return {(each["config"]["task"]["task"], each["label"], each["budget"].get("keep_tokens")): each
            for each in lines(folder / "runs/all/results.jsonl")}  # fmt: skip


def test_each_cell_has_scores_in_the_benchmarks_terms(swept):
    found = records(swept)
    assert len(found) == len(TASKS) * 5
    assert {record["status"] for record in found.values()} == {"ok"}
    pope = found["pope", "divprune", 24]
    assert pope["scoring"] == {"title": "POPE F1", "primary": "pope_f1_score", "scale": 100.0}
    assert pope["metrics"]["score"] == pope["metrics"]["scores"]["pope_f1_score"]
    assert 0 <= pope["metrics"]["unparsed"] <= 1
    assert found["mme", "none", None]["scoring"]["scale"] == 1.0
    assert found["textvqa_val", "none", None]["metrics"]["unparsed"] is not None


def test_the_report_shows_three_readings_of_pope(swept):
    report = (swept / "runs/all/report.md").read_text()
    head = "| pruner | visual tokens | F1, lmms-eval | F1, LLaVA | F1, VLMEvalKit |"
    assert " ".join(head.split()) in " ".join(report.split())
    for title in ("POPE F1", "MME perception", "TextVQA val", "VQAv2 val", "DocVQA val ANLS", "ScienceQA"):
        assert f"embedded, {title}" in report


def test_scores_can_be_made_again(swept):
    before = records(swept)
    command(swept, "rescore", "runs/all")
    after = records(swept)
    assert {key: each["metrics"]["scores"] for key, each in after.items()} == {
        key: each["metrics"]["scores"] for key, each in before.items()
    }


def test_nothing_is_asked_twice(swept):
    before = (swept / "runs/all/samples.jsonl").read_bytes()
    command(swept, "sweep", "sweep.yaml")
    assert (swept / "runs/all/samples.jsonl").read_bytes() == before
    answered = [(line["cell"], line["sample"]) for line in lines(swept / "runs/all/samples.jsonl")]
    assert len(answered) == len(set(answered)) == 5 * (24 + 16 + 6 + 10 + 5 + 6)


def test_videos(tmp_path, hub):
    from tokenprune.testing.families.llava_onevision import tiny_llava_onevision, tiny_processor

    tiny_llava_onevision().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    model = {"name": "llava_onevision", "path": str(tmp_path / "model")}
    task = {"task": "videomme", "root": str(hub), "num_frames": 4}
    grid = {"task.task": ["videomme", "mvbench_action_antonym"]}
    write(tmp_path, task, model=model, grid=grid, budget={"keep_ratio": 0.5}, batch_size=2, max_new_tokens=2)
    command(tmp_path, "sweep", "sweep.yaml")
    found = lines(tmp_path / "runs/all/results.jsonl")
    assert {each["status"] for each in found} == {"ok"}
    unpruned, pruned = (next(r for r in found if r["label"] == label) for label in ("none", "divprune"))
    assert pruned["metrics"]["kept_tokens"] == pytest.approx(unpruned["metrics"]["kept_tokens"] / 2, rel=0.1)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"task": "popee"}, "lmms-eval has no task 'popee'; did you mean 'pope'?"),
        ({"task": "mmvet"}, "lmms-eval task 'mmvet' is refused: a language model behind an API judges its answers"),
        ({"task": "pope", "prompts": "llava"}, "has no prompts 'llava'; "),
        ({"task": "pope", "root": "nowhere"}, "task.root 'nowhere' is not a folder"),
        ({"task": "pope", "root": "."}, "task.root '.' has no folder 'lmms-lab-encoder/POPE'"),
        ({"task": "infovqa_val"}, "'InfographicVQA'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, hub, task, said):
    write(tmp_path, {"root": str(hub)} | task, max_new_tokens=2)
    printed = command(tmp_path, "sweep", "sweep.yaml", status=2)
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()
