"""Which records of a plot are one line."""

from types import SimpleNamespace

from tokenprune.plots import _lines


def test_policies_for_several_budgets_are_one_line_and_seeds_are_not():
    labels = [
        "none",
        "random",
        "random",
        "random seed=1",
        "random seed=1",
        "dop policy=a_82M",
        "dop policy=a_329M",
        "dart",
    ]
    found = _lines([SimpleNamespace(label=label) for label in labels])
    assert {label: len(records) for label, records in found.items()} == {
        "none": 1,
        "random": 2,
        "random seed=1": 2,
        "dop policy=a_…M": 2,
        "dart": 1,
    }


def test_a_label_that_is_alone_keeps_its_number():
    assert list(_lines([SimpleNamespace(label="dart layer=1"), SimpleNamespace(label="none")])) == [
        "dart layer=1",
        "none",
    ]
