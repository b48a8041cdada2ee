"""Whether one method answers more questions than another, both on the same questions.

McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947), in its
exact form; Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from tokenprune.core.errors import DataError

LEVEL = 0.95  # of the confidence interval
RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """Two methods on the same questions.

    Attributes:
        difference: accuracy of the first less that of the second.
        low: lower end of the difference's 95 % confidence interval.
        high: upper end of the interval.
        first_only: discordant pairs: questions that the first alone answers rightly.
        second_only: discordant pairs: questions that the second alone answers rightly.
        p: of the exact McNemar test, two-sided; small if the discordant pairs are not split like the tosses of a coin.
    """

    difference: float
    low: float
    high: float
    first_only: int
    second_only: int
    p: float


def compare_paired(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Paired:
    """Compare two methods on paired outcomes by the exact McNemar test and a bootstrap.

    Args:
        first: (Q,) outcomes of one method, 1 for a right answer and 0 for a wrong one.
        second: (Q,) outcomes of the other method on these questions, in this order.
        seed: of the bootstrap.

    Raises:
        DataError: if there is no question, the numbers differ, or an outcome is neither 0 nor 1.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise DataError(f"paired outcomes must be as many for both, at least one; got {a.shape} and {b.shape}")
    if not np.isin([a, b], (0, 1)).all():
        raise DataError("paired outcomes must be 0 or 1; a score in between has no McNemar test")
    first_only, second_only = int((a > b).sum()), int((b > a).sum())
    low, high = bootstrap_interval(first_only, second_only, a.size, seed=seed)
    p = mcnemar(first_only, second_only)
    return Paired((first_only - second_only) / a.size, low, high, first_only, second_only, p)


def compare_seeds(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0) -> Paired:
    """Compare two methods of which at least one ran with several seeds.

    The difference is that of the mean accuracies, and its interval draws both the questions and each method's seeds
    anew; with few seeds it is a little too narrow. ``first_only``, ``second_only`` and ``p`` are of the first seed of
    each: McNemar's test knows right and wrong alone.

    Args:
        first: (S, Q) outcomes of one method, one line a seed.
        second: (S', Q) outcomes of the other method on these questions, in this order.
        seed: of the bootstrap.

    Raises:
        DataError: see ``compare_paired``.
    """
    alone = compare_paired(first[0], second[0], seed=seed)
    if len(first) == len(second) == 1:
        return alone
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape[1] != b.shape[1] or not np.isin(np.concatenate([a, b]), (0, 1)).all():
        raise DataError("outcomes of all seeds must be 0 or 1, of the same questions")
    # Questions that came out alike under all seeds are drawn together: only how many of them are drawn matters.
    patterns, counts = np.unique(np.concatenate([a, b]), axis=1, return_counts=True)
    generator, questions = np.random.default_rng(seed), a.shape[1]
    drawn = generator.multinomial(questions, counts / questions, RESAMPLES)
    right = (drawn @ patterns.T) / questions  # (resamples, S + S')
    means = []
    for part in (right[:, : len(a)], right[:, len(a) :]):
        seeds = part.shape[1]
        means.append((part * generator.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES)).sum(1) / seeds)
    low, high = np.quantile(means[0] - means[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return dataclasses.replace(alone, difference=float(a.mean() - b.mean()), low=float(low), high=float(high))


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p of the exact McNemar test; 1 if no pair is discordant.

    Args:
        first_only: questions that the first method alone answers rightly.
        second_only: questions that the second method alone answers rightly.
    """
    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


def bootstrap_interval(first_only: int, second_only: int, questions: int, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the difference of accuracies when questions are drawn anew with replacement.

    Only how many drawn questions are discordant matters, so each resample is one multinomial draw, not ``questions``.

    Args:
        first_only: questions that the first method alone answers rightly.
        second_only: questions that the second method alone answers rightly.
        questions: number of all questions.
        seed: of the draws.
    """
    shares = np.array([first_only, second_only, questions - first_only - second_only]) / questions
    drawn = np.random.default_rng(seed).multinomial(questions, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / questions, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being a family, in the order in which they were given.

    Reject those below 0.05, and the chance of even one false rejection is at most 0.05, whatever depends on what.

    Args:
        p_values: of the family, each from 0 to 1.
    """
    p: NDArray[np.float64] = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    corrected = np.empty_like(p)
    corrected[order] = raised
    return [float(value) for value in corrected]
