"""Which rows of a plot are one line, and what is drawn."""

from types import SimpleNamespace

import pytest
from PIL import Image
from report_runs import rbf, record, usual

from tokenprune.report.plots import COLOURS, MARKERS, NAMED, STYLES, _front, _lines, _named, pareto
from tokenprune.report.rows import rows_of


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


@pytest.mark.parametrize("by", ["flops", "tokens", "time"])
def test_each_cost_has_its_plot(tmp_path, by):
    assert pareto(rows_of(usual()), tmp_path / "a.png", by)
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 300
        assert "Software" not in picture.info
    pareto(rows_of(usual()), tmp_path / "b.png", by)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_plot_of_a_time_that_was_not_measured(tmp_path):
    untimed = record("random", 48, 0.5)
    del untimed.metrics["prefill_time_ratio"]
    assert not pareto(rows_of([untimed]), tmp_path / "a.png", "time")
    assert not (tmp_path / "a.png").exists()


def test_of_many_lines_the_best_and_random_are_told_apart(tmp_path):
    many = [rbf(48, 0.01 * n, budget={"keep_tokens": 48}) for n in range(40)]
    lines = {f"p{n}": rows_of([item]) for n, item in enumerate(many)} | {"random": rows_of([record("random", 48, 0.0)])}
    named = _named(lines)
    assert named == [*(f"p{n}" for n in range(41 - NAMED, 40)), "random"]
    assert _named(dict(list(lines.items())[:NAMED])) == list(lines)[:NAMED]


def test_no_two_lines_look_alike():
    looks = {(COLOURS[n % 7], MARKERS[(n % 7 + 3 * (n // 7)) % 7], STYLES[n // 7 % 3]) for n in range(NAMED)}
    in_grey = {(marker, style) for _, marker, style in looks}
    assert len(looks) == len(in_grey) == NAMED


def test_the_front_is_what_nothing_as_cheap_beats():
    drawn = []
    axes = SimpleNamespace(step=lambda x, y, **how: drawn.append((x, y)))
    rows = rows_of(
        [record(f"p{n}", kept, accuracy, pruner={"name": f"p{n}"}) for n, (kept, accuracy) in enumerate(POINTS)]
    )
    _front(axes, rows, SimpleNamespace(metric="average_tokens"))
    assert drawn == [((10, 20, 40), (0.4, 0.6, 0.7))]


POINTS = [(40, 0.7), (20, 0.5), (20, 0.6), (10, 0.4), (30, 0.6), (50, 0.65)]
