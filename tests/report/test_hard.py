"""Accuracy on the questions that a coarse picture fails."""

from report_runs import TASK, random, rbf, record

from tokenprune.report.document import Table
from tokenprune.report.hard import hard_questions
from tokenprune.report.rows import sections_of

COARSE = TASK | {"image_scale": 0.5}
FINE = TASK | {"image_scale": 1.0}


def shown(records, found):
    sections = sections_of(records, {})
    fine = next(section for section in sections if "image_scale=0.5" not in section.title)
    blocks = hard_questions(fine, sections, found)
    return next((block for block in blocks if isinstance(block, Table)), None)


def cells(records, rights):
    return {
        each.cell: {f"q{i}": float(i in right) for i in range(4)} for each, right in zip(records, rights, strict=True)
    }


def test_hard_questions_are_those_that_a_coarse_picture_fails():
    records = [
        record("none", 144, 1.0, task=FINE),
        rbf(48, 0.5, task=FINE),
        record("random", 48, 0.5, task=FINE),
        record("random", 16, 0.5, task=FINE, pruner={"name": "random", "seed": 0}),
        record("none", 143, 0.5, task=COARSE),
        rbf(47, 0.25, task=COARSE),
    ]
    found = cells(records, [{0, 1, 2, 3}, {0, 1}, {3}, set(), {0, 1, 2}, {0}])
    table = shown(records, found)
    assert table.header == ["pruner", "visual tokens", "1 at 0.5"]
    assert table.rows == [
        ["none", "144", "100.0 / 100.0"],
        ["random", "48", "100.0 / 0.0"],
        ["random", "16", "0.0 / 0.0"],
        ["cdpruner kernel=rbf", "48", "0.0 / 66.7"],
    ]


def test_seeds_are_averaged():
    records = [random(48, 0.5, 0), random(48, 0.5, 1), record("none", 144, 0.5, task=COARSE)]
    table = shown(records, cells(records, [{0}, {0, 1}, {1, 2, 3}]))
    assert table.rows == [["random", "48", "100.0 / 16.7"]]


def test_nothing_without_a_coarser_task_or_without_its_failures():
    plain = [record("none", 144, 1.0), rbf(48, 0.5)]
    assert shown(plain, cells(plain, [{0}, {1}])) is None
    easy = [*plain, record("none", 143, 1.0, task=COARSE)]
    assert shown(easy, cells(easy, [{0}, {1}, {0, 1, 2, 3}])) is None
    other = [*plain, record("none", 143, 0.0, task=COARSE | {"num_samples": 3})]
    assert shown(other, cells(other, [{0}, {1}, set()])) is None
