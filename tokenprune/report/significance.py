"""Whether one method answers better than another, both on the same questions.

Right and wrong: McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12
(1947), in its exact form. Scores in between, or questions that belong together: signs of the differences are flipped,
for whole units (Fisher, The design of experiments, 1935). Holm, A simple sequentially rejective multiple test
procedure, Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from tokenprune.core.errors import DataError

LEVEL = 0.95  # of the confidence interval
RESAMPLES = 10_000
EXACT = 16  # differences up to which all their signs are tried
AT_ONCE = 10_000_000  # numbers that are drawn together
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """Two methods on the same questions.

    Attributes:
        difference: mean score of the first less that of the second.
        low: lower end of the difference's 95 % confidence interval.
        high: upper end of the interval.
        first_only: discordant pairs: questions that the first answers better (the first alone rightly).
        second_only: discordant pairs: questions that the second answers better.
        p: two-sided, of ``test``; small if the discordant pairs are not split like the tosses of a coin.
        test: ``mcnemar``, exact, of questions that are right or wrong and each by itself; else ``sign flips``.
    """

    difference: float
    low: float
    high: float
    first_only: int
    second_only: int
    p: float
    test: Literal["mcnemar", "sign flips"] = "mcnemar"


def compare_paired(
    first: Sequence[float], second: Sequence[float], units: Sequence[str] | None = None, *, seed: int = 0
) -> Paired:
    """Compare two methods on paired outcomes: a test that the mean scores are equal, and a bootstrap.

    Args:
        first: (Q,) outcomes of one method in [0, 1].
        second: (Q,) outcomes of the other method on these questions, in this order.
        units: (Q,) what each question belongs to; those of one unit are flipped and drawn together. None, or an empty
            text, for questions by themselves.
        seed: of the draws.

    Raises:
        DataError: if there is no question, the numbers differ, or an outcome is outside [0, 1].
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise DataError(f"paired outcomes must be as many for both, at least one; got {a.shape} and {b.shape}")
    _check_range(a, b)
    first_only, second_only, numbers = int((a > b).sum()), int((b > a).sum()), _numbers(units, a.size)
    if np.isin([a, b], (0, 1)).all() and numbers.max() + 1 == a.size:
        low, high = bootstrap_interval(first_only, second_only, a.size, seed=seed)
        p = mcnemar(first_only, second_only)
        return Paired((first_only - second_only) / a.size, low, high, first_only, second_only, p)
    p = sign_flips(np.bincount(numbers, a - b).astype(float), seed=seed)
    drawn = _resampled((a - b)[None], numbers, np.random.default_rng(seed))[:, 0]
    difference = float(a.mean() - b.mean())
    return Paired(difference, *_interval(drawn), first_only, second_only, p, "sign flips")


def compare_seeds(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    units: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Paired:
    """Compare two methods of which at least one ran with several seeds.

    The difference is that of the mean scores, and its interval draws both the questions and each method's seeds anew;
    with few seeds it is a little too narrow. ``first_only``, ``second_only`` and ``p`` are of the first seed of each.

    Args:
        first: (S, Q) outcomes of one method, one line a seed.
        second: (S', Q) outcomes of the other method on these questions, in this order.
        units: see ``compare_paired``.
        seed: of the draws.

    Raises:
        DataError: see ``compare_paired``.
    """
    alone = compare_paired(first[0], second[0], units, seed=seed)
    if len(first) == len(second) == 1:
        return alone
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape[1] != b.shape[1]:
        raise DataError("all seeds must have outcomes of the same questions")
    _check_range(a, b)
    generator = np.random.default_rng(seed)
    drawn = _resampled(np.concatenate([a, b]), _numbers(units, a.shape[1]), generator)
    means = []
    for part in (drawn[:, : len(a)], drawn[:, len(a) :]):
        seeds = part.shape[1]
        means.append((part * generator.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES)).sum(1) / seeds)
    low, high = _interval(means[0] - means[1])
    return dataclasses.replace(alone, difference=float(a.mean() - b.mean()), low=low, high=high)


def sign_flips(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p of the test that differences are as likely to be of one sign as of the other.

    The share of all flips of signs whose sum is at least as far from 0 as what was found; exact up to ``EXACT``
    differences that are not 0, of 10,000 drawn flips and the one that was found otherwise. 1 if all are 0.

    Args:
        differences: (U,) sums over the questions of each unit.
        seed: of the draws.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    number, found = int(counts.sum()), abs(float(differences.sum()))
    least = found - 1e-9 * max(1.0, float(sizes @ counts))  # sums of the same numbers in another order are no smaller
    if number <= EXACT:
        flipped = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
        sums = (2 * flipped - 1) @ np.repeat(sizes, counts)
        return float((np.abs(sums) >= least).mean())
    generator, step = np.random.default_rng(seed), max(1, AT_ONCE // len(sizes))
    extreme = 0
    for start in range(0, RESAMPLES, step):
        shape = (min(step, RESAMPLES - start), len(sizes))
        sums = (2 * generator.binomial(counts, 0.5, shape) - counts) @ sizes
        extreme += int((np.abs(sums) >= least).sum())
    return (1 + extreme) / (1 + RESAMPLES)


def _check_range(*outcomes: Floats) -> None:
    if not all(((each >= 0) & (each <= 1)).all() for each in outcomes):
        raise DataError("paired outcomes must be in [0, 1], for all seeds")


def _numbers(units: Sequence[str] | None, questions: int) -> NDArray[np.int64]:
    """The number (Q,) of each question's unit."""
    if units is None or not any(units):
        return np.arange(questions)
    if len(units) != questions:
        raise DataError(f"{questions} paired outcomes have {len(units)} units")
    known = [("unit", unit) if unit else ("alone", str(number)) for number, unit in enumerate(units)]
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(known))}
    return np.array([numbers[unit] for unit in known])


def _resampled(outcomes: Floats, numbers: NDArray[np.int64], generator: np.random.Generator) -> Floats:
    """Means (R, S) of outcomes (S, Q) when whole units are drawn anew with replacement."""
    totals = np.stack([np.bincount(numbers, each) for each in (*outcomes, np.ones(len(numbers)))])
    # Units that came out alike are drawn together: only how many of them are drawn matters.
    patterns, counts = np.unique(totals, axis=1, return_counts=True)
    units, step = int(counts.sum()), max(1, AT_ONCE // len(counts))
    found = []
    for start in range(0, RESAMPLES, step):
        drawn = generator.multinomial(units, counts / units, min(step, RESAMPLES - start)) @ patterns.T
        found.append(drawn[:, :-1] / drawn[:, -1:])
    return np.concatenate(found)


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
    return _interval((drawn[:, 0] - drawn[:, 1]) / questions)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being a family, in the order in which they were given.

    Reject those below 0.05, and the chance of even one false rejection is at most 0.05, whatever depends on what.

    Args:
        p_values: of the family, each from 0 to 1.
    """
    p: Floats = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    corrected = np.empty_like(p)
    corrected[order] = raised
    return [float(value) for value in corrected]
