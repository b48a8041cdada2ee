"""Scores of the same answers in the readings of several harnesses."""

import pytest
from report_runs import record

from tokenprune.report.document import Table
from tokenprune.report.readings import readings
from tokenprune.report.rows import sections_of

POPE = {
    "pope_f1_score": 0.5,
    "pope_f1_lmms_eval": 0.667,
    "pope_f1_llava": 0.606,
    "pope_f1_vlmevalkit": 0.48,
    "pope_f1_llava_mean_of_categories": 0.512,
    "pope_answered_yes": 0.7,
}


def section(scores, **metrics):
    task = {"name": "lmms_eval", "task": "pope", "seed": 0}
    both = [("none", 144), ("divprune", 48)]
    return sections_of([record(name, kept, 0.5, task=task, scores=scores, **metrics) for name, kept in both], {})[0]


def test_pope_in_three_readings():
    blocks = readings(section(POPE, unparsed=0.75))
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert table.header[2:5] == ["F1, lmms-eval", "F1, LLaVA", "F1, VLMEvalKit"]
    assert table.rows[0] == ["none", "144", "66.7", "60.6", "48.0", "51.2", "70.0", "75.0"]
    assert [row[0] for row in table.rows] == ["none", "divprune"]


@pytest.mark.parametrize(
    ("scores", "cells"),
    [
        ({"mme_perception_score": 1500.0, "mme_perception_llava": 1490.5}, ["1500.0", "1490.5", "-", "-", "-", "-"]),
        ({"exact_match": 0.61, "gqa_accuracy_llava": 0.6}, ["61.0", "60.0", "-"]),
        ({"exact_match": 0.7, "scienceqa_accuracy_llava": 0.69}, ["70.0", "69.0", "-"]),
    ],
)
def test_other_benchmarks(scores, cells):
    table = readings(section(scores))[-1]
    assert table.rows[1][2:] == cells


def test_a_task_of_one_reading_has_no_such_table():
    assert readings(section({"exact_match": 0.61})) == []
    assert readings(section({})) == []
