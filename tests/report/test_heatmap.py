"""Grids are found in what varies, and drawn."""

import numpy as np
from PIL import Image
from report_runs import record, usual

from tokenprune.report.heatmap import draw, grids
from tokenprune.report.rows import rows_of


def cell(kernel, theta, accuracy, kept=48, **options):
    pruner = {"name": "cdpruner", "kernel": kernel, "theta": theta, **options}
    return record(f"cdpruner {kernel} {theta} {sorted(options.items())}", kept, accuracy, pruner=pruner)


def test_two_options_and_a_panel_a_budget():
    records = [
        cell(kernel, theta, 0.5 + 0.1 * n, kept)
        for kept in (48, 16)
        for n, (kernel, theta) in enumerate([("rbf", 0.5), ("rbf", 0.25), ("cosine", 0.5)])
    ]
    (grid,) = grids(rows_of([*usual(), *records]))
    assert (grid.pruner, grid.across, grid.down) == ("cdpruner", "theta", "kernel")
    assert list(grid.panels) == ["keep_tokens=48", "keep_tokens=16"]
    assert grid.panels["keep_tokens=48"] == {("rbf", "0.5"): 0.5, ("rbf", "0.25"): 0.6, ("cosine", "0.5"): 0.7} | {
        ("rbf", "default"): 0.9  # of the usual rows, which have no theta
    }


def test_more_options_stand_down_together():
    records = [
        cell(kernel, theta, 0.5, sign=sign) for kernel in ("a", "b") for theta in (0.1, 0.2, 0.3) for sign in (None, 1)
    ]
    (grid,) = grids(rows_of(records))
    assert (grid.across, grid.down) == ("theta", "kernel, sign")
    assert len(grid.panels["keep_tokens=48"]) == 12
    assert ("a, default", "0.2") in grid.panels["keep_tokens=48"]


def test_one_option_or_the_seed_is_no_grid():
    assert grids(rows_of(usual())) == []
    assert grids(rows_of([cell("a", 0.1, 0.5), cell("a", 0.2, 0.5)])) == []
    seeds = [record("random", 48, 0.5, pruner={"name": "random", "seed": n, "layer": n // 2}) for n in range(4)]
    assert grids(rows_of(seeds)) == []


def test_options_inside_a_composition():
    def both(sign, layer):
        return {"name": "compose", "pruners": [{"name": "cdpruner", "sign": sign}, {"name": "fastv", "layer": layer}]}

    records = [record(f"c{s}{n}", 48, 0.5, pruner=both(s, n)) for s in (1, -1) for n in (1, 2, 3)]
    (grid,) = grids(rows_of(records))
    assert (grid.pruner, grid.across, grid.down) == ("cdpruner+fastv", "pruners.1.layer", "pruners.0.sign")


def test_drawn(tmp_path):
    records = [cell(k, t, a, kept) for kept in (48, 16) for k, t, a in (("a", 1, 0.2), ("a", 2, 0.9), ("b", 1, 0.5))]
    (grid,) = grids(rows_of(records))
    for name in ("one.png", "two.png"):
        draw(grid, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        seen = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for extreme in ((0, 34, 78), (254, 232, 56)):  # ends of the scale: dark and light in grey too
        assert (np.abs(seen.astype(int) - extreme).max(1) < 6).mean() > 0.02
