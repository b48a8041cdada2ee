"""The sum of the curves against what policies really do."""

import numpy as np
import pytest
from study.additivity import BEST, choices, curves, estimates, section
from study.grid import Grid
from study_rows import HEADER, MLP, additive, rows

from tokenprune.core.errors import DataError


def grid(**changes):
    return Grid.of(HEADER, rows(**changes), "near")


def test_where_all_adds_up_the_sum_errs_by_the_dead_mlp_alone():
    found = grid()
    estimate = estimates(found)
    assert np.allclose(estimate["sum, dead MLP free"], found.divergence)
    overcharge = [MLP[attention - 1] for attention in found.sizes[:, 0].tolist()]
    assert np.allclose(estimate["sum"] - found.divergence, overcharge)
    assert max(overcharge) > 0


def test_curves_are_read_where_all_else_is_unpruned():
    curve = curves(grid())
    assert curve.attention.points == pytest.approx({1: 0.9, 2: 0.3})
    assert curve.mlp.points == pytest.approx({0: 0.2, 1: 0.05})
    assert curve.tokens.points == pytest.approx({2: 0.7, 4: 0.4})


def test_without_all_tokens_there_are_no_curves():
    with pytest.raises(DataError, match="no policy"):
        curves(grid(tokens=(2, 4)))


def hidden(attention, mlp, tokens):
    """Attention in two layers is all that 4 tokens need, which no curve can show."""
    return 0.01 if (attention, mlp, tokens) == (2, 0, 4) else additive(attention, mlp, tokens)


def test_the_joint_check_finds_what_the_sum_misses():
    found = grid(divergence=hidden)
    at = {choice.way: choice.row.name for choice in choices(found) if choice.budget == 2}
    assert at["sum"] != at[BEST] == "(2, 0, 4)"
    assert at["sum, best of 5 measured"] == "(2, 0, 4)"
    assert at["near alone"] == "(3, 2, 2)"
    assert {choice.budget for choice in choices(found)} == {2, 4}


def test_the_joint_check_looks_at_one_number_of_tokens_for_each_pair_of_depths():
    """As the solver of a fit does: 8 tokens in one layer are within the budget, so 4 are not looked at."""

    def fewer(*size):
        return 0.01 if size == (1, 0, 4) else additive(*size)

    at = {choice.way: choice.row.name for choice in choices(grid(divergence=fewer)) if choice.budget == 2}
    assert at[BEST] == "(1, 0, 4)" != at["sum, best of 5 measured"]


def test_an_edge_of_one_policy_has_no_rank(tmp_path):
    text = "\n".join(section(grid(tokens=(8,)), tmp_path))
    assert "| sum, dead MLP free | 1.000 | 1.000 to 1.000 | 1.000 | - | - |" in text


def test_the_report_says_so(tmp_path):
    text = "\n".join(section(grid(divergence=hidden), tmp_path))
    sums = [line for line in text.splitlines() if line.startswith("| 2 | sum |")]
    best = [line for line in text.splitlines() if line.startswith(f"| 2 | {BEST} |")]
    assert len(sums) == len(best) == 1
    assert "| (2, 0, 4) |" in best[0]
    assert best[0].endswith("| 0.0000 | 100.0 | 0.0 | - |")
    row = next(choice.row for choice in choices(grid(divergence=hidden)) if choice.way == "sum")
    lost = f"{row.divergence - 0.01:.4f} | {100 * row.accuracy:.1f} | {100 - 100 * row.accuracy:.1f}"
    assert lost in sums[0]
    assert row.divergence > 0.01
    assert (tmp_path / "additivity.png").stat().st_size > 10_000
