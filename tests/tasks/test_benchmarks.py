"""The table of checked benchmarks agrees with what lmms-eval computes."""

import json
from pathlib import Path

import pytest

from tokenprune.tasks.benchmarks import BENCHMARKS, REFUSED

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/lmms/golden.json").read_text())["tasks"]
# Perfect answers in published scale, of a few rows that are not of all categories.
TRUTH = {"mme": 1000.0, "ocrbench": 6.0, "textvqa_val": 51.667, "vqav2_val": 95.0}


def test_every_task_with_golden_scores_is_in_the_table():
    assert GOLDEN.keys() <= BENCHMARKS.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_primary_is_a_metric_and_the_scale_is_the_published_one(name):
    benchmark = BENCHMARKS[name]
    found = GOLDEN[name]["sheets"]["truth"]["aggregated"][benchmark.primary]
    assert found * benchmark.scale == pytest.approx(TRUTH.get(name, 100.0), abs=1e-3)
    assert GOLDEN[name]["higher_is_better"][benchmark.primary]


@pytest.mark.parametrize("name", GOLDEN)
def test_units_are_fields_of_the_rows(name):
    benchmark = BENCHMARKS[name]
    assert set(benchmark.unit) <= GOLDEN[name]["features"].keys()


@pytest.mark.parametrize("name", [name for name in GOLDEN if BENCHMARKS[name].read])
def test_a_right_answer_is_readable(name):
    for sheet in GOLDEN[name]["sheets"].values():
        for row in sheet["rows"]:
            (score, *_) = row["result"].values()
            right = score == 1.0 or (isinstance(score, dict) and score.get("score") == 1.0)
            assert not right or BENCHMARKS[name].read(row["filtered"]) is not None, row["answer"]


def test_units():
    mmbench, mme, pope = (BENCHMARKS[name] for name in ("mmbench_en_dev_static", "mme", "pope"))
    assert {mmbench.unit_of({"index": index}) for index in (7, 1_000_007, 3_000_007)} == {"7"}
    assert mmbench.unit_of({"index": 1_000_008}) == "8"
    assert mmbench.unit_of({"index": 234_008}) == "234008"
    assert mme.unit_of({"question_id": "a.png", "category": "OCR"}) == "OCR/a.png"
    assert mme.unit_of({"question_id": "a.png"}) == ""
    assert pope.unit_of({"image_source": "COCO_1"}) == "COCO_1"
    assert BENCHMARKS["scienceqa"].unit_of({"question": "?"}) == ""


def test_titles_are_unlike_and_refused_tasks_are_not_listed():
    assert len({each.title for each in BENCHMARKS.values()}) == len(BENCHMARKS)
    assert not BENCHMARKS.keys() & REFUSED.keys()
    assert all(BENCHMARKS[task].task == task for task in BENCHMARKS)
    assert sum(task.startswith("mvbench_") for task in BENCHMARKS) == 20


@pytest.mark.parametrize("task", ["mmbench_en_dev_static", "egoschema_subset"])
def test_a_refusal_names_a_task_that_exists(task):
    assert task in BENCHMARKS
    assert any(task in reason for reason in REFUSED.values())
