"""How objectives rank policies by their accuracy."""

import numpy as np
import pytest
from study import objective
from study.grid import Grid
from study_rows import HEADER, additive, rows


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(objective, "DRAWS", 20)


def by_name(grid):
    return {(one.objective, one.questions): one for one in objective.rankings(grid)}


def test_a_divergence_that_decides_the_answers():
    found = by_name(Grid.of(HEADER, rows(), "near"))
    assert {questions for _, questions in found} == {10, 20}
    for name in ("KL, first token", "KL, teacher-forced"):
        assert found[name, 20].rank[0] > 0.98  # ties of accuracy aside
        assert found[name, 20].lost == (0, 0)
        assert found[name, 10].rank[1] == pytest.approx(0, abs=1e-9)  # all questions are alike


def test_a_divergence_that_misleads():
    def right(*size):
        return np.arange(30) < round(20 * min(additive(*size), 1))  # the more it diverges, the better

    found = by_name(Grid.of(HEADER, rows(right=right), "near"))["KL, first token", 20]
    assert found.rank[0] < -0.9
    assert found.edge[0] < -0.9
    assert found.lost[0] > 0.2


def test_few_questions_are_worse_than_many():
    rng = np.random.default_rng(0)
    noisy = rows(divergence=lambda *size: additive(*size) + rng.normal(0, 1, 20).clip(-0.2))
    found = by_name(Grid.of(HEADER, noisy, "near"))
    few, many = found["KL, first token", 10], found["KL, first token", 20]
    assert few.rank[1] > 0.005
    assert many.rank[1] == 0


def test_an_objective_that_ranks_nothing_counts_as_chance(tmp_path):
    made = rows()
    made[0] = rows()[0].__class__(**{**vars(made[0]), "same": np.arange(20) > 0})
    found = by_name(Grid.of(HEADER, made, "near"))["answers that change", 20]
    assert found.edge[0] == 0  # among these policies all answers are the same
    text = "\n".join(objective.section(Grid.of(HEADER, made, "near"), tmp_path))
    assert "| KL, first token | 20 |" in text
    assert (tmp_path / "objective.png").stat().st_size > 10_000
