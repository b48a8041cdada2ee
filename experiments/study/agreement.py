"""How well an estimate of policies agrees with what they do: in rank, and in what is lost by trusting it.

P policies, S questions; of divergences and losses less is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, spearmanr

from tokenprune.core.errors import BudgetError, DataError

Numbers = NDArray[np.float64]
ROUNDING = 1e-12  # relative; two orders of adding up a cost may differ by less


def spearman(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Rank correlation in [-1, 1].

    Args:
        estimate: (P,).
        truth: (P,).

    Raises:
        DataError: if the shapes differ, or one of them ranks nothing.
    """
    return float(spearmanr(*_ranked(estimate, truth)).statistic)


def kendall(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b: pairs that both put in the same order less the others, over all; arguments of ``spearman``."""
    return float(kendalltau(*_ranked(estimate, truth)).statistic)


def affordable(cost: ArrayLike, budget: float) -> NDArray[np.bool_]:
    """(P,) which policies cost at most so much.

    Raises:
        BudgetError: if none does.
    """
    allowed: NDArray[np.bool_] = np.asarray(cost) <= budget * (1 + ROUNDING)
    if not allowed.any():
        raise BudgetError(f"no policy costs {budget:g} or less; the least is {np.min(cost):g}")
    return allowed


def choose(estimate: ArrayLike, cost: ArrayLike, budget: float) -> int:
    """Which policy within a budget has the least estimate, of equal ones the cheapest.

    Args:
        estimate: (P,).
        cost: (P,).
        budget: most that it may cost.
    """
    at = np.flatnonzero(affordable(cost, budget))
    return int(at[np.lexsort((np.asarray(cost)[at], np.asarray(estimate)[at]))[0]])


def regret(estimate: ArrayLike, loss: ArrayLike, cost: ArrayLike, budget: float) -> float:
    """Loss of the policy that an estimate chooses, less that of the best within the budget; at least 0."""
    losses = np.asarray(loss, dtype=np.float64)
    return float(losses[choose(estimate, cost, budget)] - losses[affordable(cost, budget)].min())


def edge(sizes: ArrayLike, cost: ArrayLike, budget: float) -> NDArray[np.bool_]:
    """(P,) which policies use a budget up: within it, and no other within it is at least as large in every parameter.

    Args:
        sizes: (P, parameters), no two rows the same.
        cost: (P,).
        budget: most that one may cost.
    """
    values, allowed = np.asarray(sizes), affordable(cost, budget)
    covers = (values[None] >= values[:, None]).all(2) & allowed[None]
    np.fill_diagonal(covers, False)
    return allowed & ~covers.any(1)


def subset_means(values: Numbers, number: int, draws: int, seed: int = 0) -> Numbers:
    """Means over random sets of questions, drawn without replacement.

    Args:
        values: (P, S).
        number: questions in a set.
        draws: sets.
        seed: of the draws.

    Returns:
        (draws, P).
    """
    questions = values.shape[1]
    if not 1 <= number <= questions:
        raise DataError(f"{number} questions cannot be drawn, there are {questions}")
    rng = np.random.default_rng(seed)
    return np.stack([values[:, rng.permutation(questions)[:number]].mean(1) for _ in range(draws)])


def spearman_interval(estimate: Numbers, truth: Numbers, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of Spearman's coefficient between means over the same questions.

    Args:
        estimate: (P, S) by question.
        truth: (P, S), of the same questions.
        draws: resamples with replacement.
        seed: of the draws.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = rng.integers(truth.shape[1], size=truth.shape[1])
        found.append(spearman(estimate[:, drawn].mean(1), truth[:, drawn].mean(1)))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _ranked(estimate: ArrayLike, truth: ArrayLike) -> tuple[Numbers, Numbers]:
    first, second = (np.asarray(values, dtype=np.float64) for values in (estimate, truth))
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(f"rankings must be of the same policies, got {first.shape} and {second.shape}")
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        raise DataError("a ranking needs two policies that differ")
    return first, second
