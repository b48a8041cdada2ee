"""Records become rows and sections, whatever the order of the lines."""

import dataclasses
import itertools
import random as rng
import statistics

import pytest
from report_runs import TASK, random, rbf, record, usual

from tokenprune.core.errors import DataError
from tokenprune.report.rows import natural, rows_of, sections_of

CONFIG = {"baselines": ["random", "uniform", ["cdpruner", {"name": "fastv", "layer": 3}]], "pruner": "cdpruner"}


def names(section):
    return [(row.label, row.mean("average_tokens")) for row in section.rows]


def test_records_that_differ_in_their_seed_are_one_row():
    rows = rows_of(usual())
    assert [(row.label, len(row.records)) for row in rows] == [
        ("none", 1),
        ("random", 3),
        ("random", 3),
        ("cdpruner kernel=rbf", 1),
        ("cdpruner kernel=rbf", 1),
    ]
    assert rows[1].mean("accuracy") == pytest.approx(0.7)
    assert rows[1].deviation("accuracy") == pytest.approx(statistics.stdev((0.7, 0.6, 0.8)))
    assert rows[1].mean("accuracy_by_kind", "count") == pytest.approx(0.35)
    assert rows[1].deviation("accuracy_by_kind", "count") == pytest.approx(0.05)
    assert rows[3].deviation("accuracy") is None
    assert rows[3].mean("no_such_metric") is None


def test_a_seed_inside_another_pruner_counts_as_one_too():
    made = [
        record(label, 48, 0.5, pruner={"name": "dop", "base": {"name": "random", "seed": seed}, "policy": "a"})
        for label, seed in (("dop base=(random seed=1) policy=a", 1), ("dop base=random policy=a", 0))
    ]
    (row,) = rows_of(made)
    assert row.label == "dop base=random policy=a"
    assert [each.pruner["base"]["seed"] for each in row.records] == [0, 1]


def test_another_option_is_another_row():
    other = dataclasses.replace(rbf(48, 0.5), pruner={"name": "cdpruner", "kernel": "rbf", "theta": 0.25}, cell="x")
    assert len(rows_of([rbf(48, 0.5), other])) == 2


def test_failed_records_stand_beside_the_finished_ones():
    failed = dataclasses.replace(random(48, 0.7, 4), status="failed", metrics={}, error="no")
    row = rows_of([failed, random(48, 0.5, 0)])[0]
    assert (len(row.records), len(row.failed)) == (1, 1)
    assert row.any.metrics


def test_the_order_is_that_of_the_configuration_and_not_of_the_lines():
    composed = {"name": "compose", "pruners": [{"name": "cdpruner"}, {"name": "fastv", "layer": 3}]}
    records = [*usual(), record("uniform", 48, 0.6), record("cdpruner+fastv layer=3", 48, 0.9, pruner=composed)]
    expected = [
        *(("none", 144), ("random", 48), ("random", 16), ("uniform", 48), ("cdpruner+fastv layer=3", 48)),
        *(("cdpruner kernel=rbf", 48), ("cdpruner kernel=rbf", 16)),
    ]
    for seed in range(5):
        rng.Random(seed).shuffle(records)
        (section,) = sections_of(records, CONFIG)
        assert names(section) == expected
        assert [each.seed for each in section.rows[1].records] == [0, 1, 2]
        assert section.studied == "cdpruner kernel=rbf"


def test_a_baseline_of_the_same_name_is_not_what_is_studied():
    config = {"baselines": [{"name": "cdpruner", "kernel": "rbf"}], "pruner": {"name": "cdpruner", "kernel": "cosine"}}
    studied = record("cdpruner", 48, 0.9, pruner={"name": "cdpruner", "kernel": "cosine"})
    (section,) = sections_of([studied, rbf(48, 0.5)], config)
    assert [row.label for row in section.rows] == ["cdpruner kernel=rbf", "cdpruner"]
    assert section.studied == "cdpruner"


@pytest.mark.parametrize("config", [{}, {"pruner": None, "baselines": None}, {"baselines": [], "grid": {"a": [1]}}])
def test_without_a_configuration_names_decide(config):
    for records in itertools.islice(itertools.permutations([rbf(48, 0.9), record("dart", 48, 0.5), *usual()[:2]]), 8):
        (section,) = sections_of(records, config)
        assert [row.label for row in section.rows] == ["none", "random", "cdpruner kernel=rbf", "dart"]


def test_numbers_sort_as_numbers():
    labels = ["fastv layer=10", "fastv layer=2", "theta=0.9", "theta=0.25"]
    assert sorted(labels, key=natural) == ["fastv layer=2", "fastv layer=10", "theta=0.25", "theta=0.9"]


def test_models_and_tasks_are_sections():
    other = {**TASK, "seed": 1}
    records = [rbf(48, 0.9), rbf(48, 0.8, model="llava"), rbf(48, 0.7, task=other)]
    for order in itertools.permutations(records):
        sections = sections_of(order, {})
        assert [section.title for section in sections] == [
            "embedded, task scenes (task.seed=0)",
            "embedded, task scenes (task.seed=1)",
            "llava, task scenes",
        ]
        assert [section.rows[0].mean("accuracy") for section in sections] == [0.9, 0.7, 0.8]
    assert sections[0].rows[0].section != sections[1].rows[0].section


def test_a_record_of_another_version():
    old = rbf(48, 0.9)
    del old.metrics["average_tokens"]
    with pytest.raises(DataError, match=r"'cdpruner kernel=rbf' has no 'average_tokens': it is of another version"):
        sections_of([old], {})
