"""Policies that are used elsewhere than where they were fitted, by hand."""

import dataclasses

import numpy as np
import pytest
from study import transfer
from study.grid import Grid
from study_rows import HEADER, additive, rows

COLOR = np.arange(20) % 2 == 0
BUDGET = HEADER.budgets[2]


def split(attention, mlp, tokens):
    """For colours depth matters alone, for counting the number of tokens."""
    return np.where(COLOR, 3.0 - attention, 8.0 - tokens) / 8


def answers(attention, mlp, tokens):
    color = np.arange(30) % 2 == 0
    ranks = np.arange(30) // 2  # of 15 questions of each kind
    return np.where(color, ranks < 5 * attention, ranks < 1.5 * tokens)


@pytest.fixture
def grid():
    return Grid.of(HEADER, rows(divergence=split, right=answers), "near")


def test_each_kind_gets_the_policy_that_it_asks_for(grid):
    chosen = transfer.policies_by_kind(grid, BUDGET)
    assert list(chosen) == ["color", "count", "all kinds"]
    assert chosen["color"].attention == 3
    assert chosen["count"].tokens == 8
    for kind, row in chosen.items():
        assert row.flops <= BUDGET, kind


def test_across_kinds_by_hand(grid):
    chosen = transfer.policies_by_kind(grid, BUDGET)
    table = transfer.across_kinds(grid, BUDGET)
    assert table.shape == (4, 3)
    for line, row in zip(table, chosen.values(), strict=False):
        color, count = min(1, row.attention / 3), 1.5 * row.tokens / 15
        assert line == pytest.approx([color, count, (color + count) / 2])
    assert table[0, 0] > table[1, 0]
    assert table[1, 1] > table[0, 1]
    edge = [transfer.accuracy_by_kind(row, HEADER) for row, on in zip(grid.rows, grid.edge(BUDGET), strict=True) if on]
    assert table[3] == pytest.approx(np.mean(edge, 0))


def test_across_bases_by_hand():
    far = rows(divergence=lambda *size: 2 - additive(*size), base="far", right=lambda a, m, n: np.arange(30) < 3 * a)
    mixed = [*rows(), *(row for row in far if row.tokens < 8)]
    grids = [Grid.of(HEADER, mixed, base).only({2, 4}) for base in ("near", "far")]
    table = transfer.across_bases(grids, BUDGET)
    assert table.shape == (3, 2)
    for number, grid in enumerate(grids):
        row = grid.rows[grid.choose(grid.divergence, BUDGET)]
        same = [other.at(row.attention, row.mlp, row.tokens).accuracy for other in grids]
        assert table[number] == pytest.approx(same)
    assert not np.allclose(table[0], table[1])
    assert table[2, 1] == pytest.approx(grids[1].accuracy[grids[1].edge(BUDGET)].mean())


def test_what_is_lost_is_against_the_diagonal(grid, tmp_path):
    text = "\n".join(transfer.section(HEADER, grid.rows, ["near"], tmp_path))
    (color, count) = (line.split(" | ")[1:] for line in _lost(text, ("| color |", "| count |")))
    assert color[0] == count[1] == "0.0"
    expected = [transfer.across_kinds(grid, budget) for budget in HEADER.budgets.values()]
    lost = np.mean([table[0, 0] - table[1, 0] for table in expected])
    assert count[0] == f"{100 * lost:.1f}"
    assert lost > 0.1
    assert "base to base" not in text
    assert (tmp_path / "transfer_kinds.png").exists()


def _lost(text, starts):
    below = text[text.index("Points lost") :].splitlines()
    return [next(line for line in below if line.startswith(start)) for start in starts]


def test_a_second_base_is_compared_on_what_both_have(grid, tmp_path):
    far = [dataclasses.replace(row, base="far") for row in grid.rows if row.tokens == 2]
    text = "\n".join(transfer.section(HEADER, [*grid.rows, *far], ["near", "far"], tmp_path))
    assert "The grids have 2, 8 visual tokens in common" in text
    assert (tmp_path / "transfer_bases.png").exists()
