"""The experiments' records are what this code computes: a few answers of one row of each are computed again.

``row.jsonl`` holds a cell's first lines of ``samples.jsonl``, which is too large to be committed.
"""

import json
from pathlib import Path
from statistics import fmean

import pytest

from tokenprune.core.budget import Budget
from tokenprune.sweeps.build import Cell, build_checkpoint, build_task
from tokenprune.sweeps.config import Part
from tokenprune.sweeps.evaluate import Evaluator
from tokenprune.sweeps.make_parts import make_pruner
from tokenprune.sweeps.model_config import ModelConfig

ROWS = sorted(Path(__file__).parents[1].glob("experiments/*/row.jsonl"))
SLACK = 1  # questions that another machine's rounding may answer otherwise


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def session():
    return build_checkpoint(ModelConfig()).load()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.parent.name)
def test_a_row_is_found_again(path, session):
    lines = lines_of(path)
    (record,) = [each for each in lines_of(path.with_name("results.jsonl")) if each["cell"] == lines[0]["cell"]]
    assert record["status"] == "ok"
    # A longer set begins with the shorter one.
    task = build_task(Part.of(record["config"]["task"] | {"num_samples": len(lines)}, "task"))
    samples = task.samples()
    part, pruner = make_pruner(Part.of(as_now(record["pruner"]), "pruner"), 0)
    cell = Cell(record["label"], part, pruner, Budget(**record["budget"]))
    evaluator = Evaluator(session, task, record["config"]["max_new_tokens"])
    again = evaluator.answer(cell, evaluator.ask(samples, [cell]))
    assert [new["sample"] for new in again] == [line["sample"] for line in lines]
    told = [[(each["answer"], each["correct"]) for each in side] for side in (lines, again)]
    assert sum(before != now for before, now in zip(*told, strict=True)) <= SLACK
    kept = [[fmean(each["evidence_kept"] or 0 for each in side), *counts(side)] for side in (lines, again)]
    assert kept[1] == pytest.approx(kept[0], abs=0.01)


def as_now(options):
    """A record's pruner: which question is relevant has become an option of the conditioning."""
    now = {name: value for name, value in options.items() if name != "relevance_question"}
    if options.get("relevance_question") == "other":
        now["conditioning"] = {"name": options["conditioning"], "question": "other"}
    return now


def counts(lines):
    """Mean number of tokens after each stage."""
    return [fmean(stage["tokens"] for stage in at) for at in zip(*(line["stages"] for line in lines), strict=True)]
