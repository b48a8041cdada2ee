"""Rankings of policies against each other, by hand."""

import numpy as np
import pytest
from study import agreement

from tokenprune.core.errors import BudgetError, DataError

ESTIMATE = [0.4, 0.1, 0.3, 0.2]
LOSS = [0.5, 0.2, 0.1, 0.3]
COST = [10, 40, 20, 30]


def test_rank_correlations_by_hand():
    # Ranks of the estimate 4 1 3 2, of the loss 4 2 1 3: squared differences 0, 1, 4, 1.
    assert agreement.spearman(ESTIMATE, LOSS) == pytest.approx(1 - 6 * 6 / (4 * 15))
    # Of six pairs four are in the same order: (0, 1), (0, 2), (0, 3), (1, 3).
    assert agreement.kendall(ESTIMATE, LOSS) == pytest.approx((4 - 2) / 6)
    assert agreement.spearman(ESTIMATE, [-x for x in ESTIMATE]) == pytest.approx(-1)


def test_only_ranks_count():
    assert agreement.spearman(np.exp(ESTIMATE), LOSS) == agreement.spearman(ESTIMATE, LOSS)
    assert agreement.kendall(np.exp(ESTIMATE), LOSS) == agreement.kendall(ESTIMATE, LOSS)


@pytest.mark.parametrize("measure", [agreement.spearman, agreement.kendall])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([1, 2], [1, 2, 3], "same policies"), ([1, 1], [1, 2], "two policies"), ([[1, 2]], [[1, 2]], "same policies")],
)
def test_what_is_no_ranking_is_refused(measure, first, second, message):
    with pytest.raises(DataError, match=message):
        measure(first, second)


def test_choice_and_regret_by_hand():
    assert agreement.choose(ESTIMATE, COST, 40) == 1
    assert agreement.regret(ESTIMATE, LOSS, COST, 40) == pytest.approx(0.2 - 0.1)
    assert agreement.choose(ESTIMATE, COST, 30) == 3
    assert agreement.regret(ESTIMATE, LOSS, COST, 30) == pytest.approx(0.3 - 0.1)
    assert agreement.choose(ESTIMATE, COST, 10) == 0
    assert agreement.regret(ESTIMATE, LOSS, COST, 10) == 0


def test_of_equal_estimates_the_cheapest_is_chosen():
    assert agreement.choose([0.1, 0.1, 0.1], [3, 1, 2], 3) == 1


def test_the_budget_itself_is_affordable_however_it_is_added_up():
    assert agreement.affordable([0.1 + 0.2, 0.4], 0.3).tolist() == [True, False]
    with pytest.raises(BudgetError, match=r"no policy costs 5 or less; the least is 10"):
        agreement.affordable(COST, 5)


def test_the_edge_of_a_budget():
    sizes = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]
    cost = [2, 3, 3, 4, 9]
    assert agreement.edge(sizes, cost, 3).tolist() == [False, True, True, False, False]
    assert agreement.edge(sizes, cost, 4).tolist() == [False, False, False, True, False]
    assert agreement.edge(sizes, cost, 9).tolist() == [False, False, False, True, True]
    assert agreement.edge(sizes, cost, 2).tolist() == [True, False, False, False, False]


def test_subset_means():
    values = np.arange(12.0).reshape(2, 6)
    whole = agreement.subset_means(values, 6, 3)
    assert np.allclose(whole, [[2.5, 8.5]] * 3)  # without replacement: all six are all six
    one = agreement.subset_means(values, 1, 50)
    assert one.shape == (50, 2)
    assert set(one[:, 0]) == set(range(6))
    assert (one[:, 1] - one[:, 0] == 6).all()  # the same questions for all policies
    assert np.array_equal(one, agreement.subset_means(values, 1, 50))
    assert not np.array_equal(one, agreement.subset_means(values, 1, 50, seed=1))
    with pytest.raises(DataError, match="7 questions cannot be drawn, there are 6"):
        agreement.subset_means(values, 7, 1)


def test_the_interval_covers_and_narrows():
    rng = np.random.default_rng(0)
    level = np.linspace(0, 1, 20)[:, None]

    def interval(questions):
        estimate, truth = (level + rng.normal(0, 1, (20, questions)) for _ in range(2))
        return *agreement.spearman_interval(estimate, truth, 200), agreement.spearman(estimate.mean(1), truth.mean(1))

    few, many = interval(20), interval(2000)
    assert few[1] - few[0] > 2 * (many[1] - many[0])
    assert many[0] < many[2] < many[1] + 0.05
    assert agreement.spearman_interval(level + np.zeros(9), level + np.zeros(9), 50) == (1, 1)
