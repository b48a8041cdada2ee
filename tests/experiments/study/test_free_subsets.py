"""Free removals against depth-wise ones, by hand."""

import dataclasses

import numpy as np
import pytest
from study.free_subsets import DEPTH_WISE, FREE, GRID, Rivals, section
from study_rows import HEADER, LAYERS, row, rows

TOKENS = 4


def path(name, removed, divergences, right):
    """Rows of a path that removes (layer, operation) one after the other, dead work first."""
    active, made = np.ones((LAYERS, 3), bool), []
    active[-1, 1:] = False
    for at, gone in enumerate(removed):
        active = active.copy()
        for layer, operation in gone:
            active[layer, operation] = False
        cost = 15.0 + TOKENS * float((active * [1, 1, 1]).sum())
        made.append(
            dataclasses.replace(
                row(1, 0, TOKENS, divergences[at], right, set=name, active=active, flops=cost), attention=None, mlp=None
            )
        )
    return made


@pytest.fixture
def results():
    free = path("greedy_free", [[(1, 0)], [(0, 2)], [(2, 0), (1, 1), (1, 2), (0, 1)]], [0.1, 0.15, 0.9], True)
    depth_wise = path("greedy_depth_wise", [[(1, 2)], [(1, 1)], [(2, 0)]], [0.3, 0.4, 0.6], np.arange(30) < 20)
    return [*rows(), *free, *depth_wise]


def test_the_best_within_a_budget(results):
    one = Rivals.of(HEADER, results, "near", TOKENS)
    assert {way: len(found) for way, found in one.rows.items()} == {GRID: 6, DEPTH_WISE: 3, FREE: 3}
    assert one.choose(FREE, 15 + TOKENS * 6).divergence == pytest.approx(0.1)
    assert one.choose(FREE, 15 + TOKENS * 5).divergence == pytest.approx(0.15)
    assert one.choose(FREE, 15 + TOKENS * 4).divergence == pytest.approx(0.9)
    assert one.choose(GRID, 15 + TOKENS * 2).name == f"(1, 0, {TOKENS})"
    least, full = one.grid.flops.min(), one.grid.flops.max()
    assert all(least < budget < full for budget in one.budgets())


def test_section(results, tmp_path):
    text = "\n".join(section(HEADER, results, "near", tmp_path))
    assert f"{TOKENS} tokens, free, greedy: K/V 1, MLP 0, K/V 2\n" in text
    assert f"{TOKENS} tokens, depth-wise, greedy: MLP 1, Q/O 1, K/V 2\n" in text
    lines = [line for line in text.splitlines() if line.startswith(f"| {TOKENS} |")]
    assert len(lines) == 4 * 4  # budgets, and chance besides three ways
    budget = Rivals.of(HEADER, results, "near", TOKENS).budgets()[0]
    best = Rivals.of(HEADER, results, "near", TOKENS).choose(GRID, budget)
    free = next(line for line in lines if FREE in line).split(" | ")
    assert free[-3:-1] == ["100.0", f"{100 - 100 * best.accuracy:.1f}"]
    assert (tmp_path / "free_subsets.png").stat().st_size > 10_000


def test_without_paths_there_is_no_section(tmp_path):
    assert section(HEADER, rows(), "near", tmp_path) == []
    assert not list(tmp_path.iterdir())
