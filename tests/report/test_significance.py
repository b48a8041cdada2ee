"""Paired tests by hand, against slow enumeration, and against scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from tokenprune.core.errors import DataError
from tokenprune.report.significance import bootstrap_interval, compare_paired, compare_seeds, holm, mcnemar, sign_flips


def outcomes(both, first_only, second_only, neither, seed=0):
    pairs = [(1, 1)] * both + [(1, 0)] * first_only + [(0, 1)] * second_only + [(0, 0)] * neither
    np.random.default_rng(seed).shuffle(pairs)
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_mcnemar_by_hand():
    """Of six discordant pairs all one way: 2 / 2^6. Five of six: twice (1 + 6) / 2^6."""
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(3, 3) == pytest.approx(1)
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize(("first_only", "second_only"), list(itertools.product(range(7), range(7))))
def test_mcnemar_is_the_share_of_splits_that_are_no_likelier(first_only, second_only):
    number = first_only + second_only
    splits = [sum(toss) for toss in itertools.product((0, 1), repeat=number)]
    extreme = sum(abs(split - number / 2) >= abs(first_only - number / 2) for split in splits)
    assert mcnemar(first_only, second_only) == pytest.approx(extreme / 2**number)


def test_compare_paired():
    first, second = outcomes(both=50, first_only=12, second_only=3, neither=35)
    found = compare_paired(first, second)
    assert (found.first_only, found.second_only) == (12, 3)
    assert found.difference == pytest.approx(0.09)
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert found.p == mcnemar(12, 3)
    assert found.low < found.difference < found.high
    assert compare_paired(first, second) == found  # seeded
    swapped = compare_paired(second, first)
    assert (swapped.difference, swapped.p) == pytest.approx((-found.difference, found.p))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.011)
    assert compare_paired(first, second, seed=1).low == pytest.approx(found.low, abs=0.011)


@pytest.mark.parametrize(("both", "first_only", "second_only", "neither"), [(200, 40, 20, 40), (5, 3, 30, 260)])
def test_the_interval_is_scipy_s_paired_bootstrap(both, first_only, second_only, neither):
    first, second = outcomes(both, first_only, second_only, neither)

    def difference(a, b, axis):
        return a.mean(axis) - b.mean(axis)

    theirs = bootstrap(
        (np.array(first), np.array(second)),
        difference,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(3),
        batch=500,
    ).confidence_interval
    ours = bootstrap_interval(first_only, second_only, len(first))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=2 / len(first))


def test_the_interval_is_near_the_normal_one():
    """Variance of a paired difference: (b + c - (b - c)^2 / n) / n^2."""
    n, b, c = 5000, 400, 300
    spread = 1.96 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert bootstrap_interval(b, c, n) == pytest.approx((0.02 - spread, 0.02 + spread), abs=4e-4)


def test_nothing_discordant():
    found = compare_paired([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert (found.first_only, found.second_only) == (0, 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.9, 0.9]) == [1, 1, 1]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    draw = np.random.default_rng(0)
    for _ in range(200):
        p = draw.choice([0.001, 0.004, 0.008, 0.01, 0.012, 0.02, 0.04, 0.3], size=draw.integers(1, 8))
        left, rejected = sorted(range(len(p)), key=lambda i: p[i]), set()
        while left and p[left[0]] <= 0.05 / len(left):
            rejected.add(left.pop(0))
        assert {i for i, value in enumerate(holm(p)) if value <= 0.05 + 1e-12} == rejected


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "at least one"),
        ([1, 0], [1], "as many for both"),
        ([1, 1.5], [1, 0], r"must be in \[0, 1\]"),
        ([1, float("nan")], [1, 0], r"must be in \[0, 1\]"),
    ],
)
def test_what_is_no_pair_of_outcomes(first, second, message):
    with pytest.raises(DataError, match=message):
        compare_paired(first, second)


def test_single_seeds_are_the_plain_comparison():
    first, second = outcomes(both=50, first_only=12, second_only=3, neither=35)
    assert compare_seeds([first], [second]) == compare_paired(first, second)


def test_several_seeds():
    """The mean's difference, an interval that is a slow two-level bootstrap's, and the first seeds' McNemar test."""
    draw = np.random.default_rng(0)
    skill = draw.uniform(size=400)
    a = (draw.uniform(size=(4, 400)) < skill + np.array([[0.1], [0.0], [-0.05], [0.05]])).astype(float)
    b = (draw.uniform(size=(1, 400)) < skill - 0.1).astype(float)
    found = compare_seeds(a.tolist(), b.tolist())
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p == compare_paired(a[0], b[0]).p
    assert (found.first_only, found.second_only) == (int((a[0] > b[0]).sum()), int((b[0] > a[0]).sum()))
    slow = []
    for _ in range(4000):
        questions, seeds = draw.integers(400, size=400), draw.integers(4, size=4)
        slow.append(a[seeds][:, questions].mean() - b[:, questions].mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.006)
    alone = compare_paired(a[0], b[0])
    assert found.high - found.low != pytest.approx(alone.high - alone.low, abs=1e-4)
    assert compare_seeds(a.tolist(), b.tolist()) == found


def test_seeds_that_spread_make_the_interval_wider():
    draw = np.random.default_rng(1)
    base = (draw.uniform(size=300) < 0.5).astype(float)
    spread = [[1.0] * 300, [0.0] * 300]
    alike = [[1.0] * 150 + [0.0] * 150] * 2
    wide, narrow = (compare_seeds(seeds, [base.tolist()]) for seeds in (spread, alike))
    assert wide.difference == pytest.approx(narrow.difference)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize("seeds", [[[1, 0], [1, -0.5]], [[1, 0], [1, float("nan")]]])
def test_every_seed_is_checked(seeds):
    with pytest.raises(DataError, match="for all seeds"):
        compare_seeds(seeds, [[1, 0]])


def slow_flips(differences):
    found = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(each >= found - 1e-12 for each in sums) / len(sums)


def test_sign_flips_by_hand():
    """Three differences of one sign: the sum is as far out for 2 of 8 flips."""
    assert sign_flips(np.array([0.5, 0.25, 0.1])) == pytest.approx(2 / 8)
    assert sign_flips(np.array([0.5, 0.0, -0.5])) == 1
    assert sign_flips(np.zeros(4)) == 1


@pytest.mark.parametrize("number", [1, 4, 9, 12])
def test_sign_flips_are_the_share_of_all_flips(number):
    draw = np.random.default_rng(number)
    for _ in range(5):
        differences = draw.choice([-1, -0.5, 0, 0.3, 0.6, 1], size=number)
        assert sign_flips(differences) == pytest.approx(slow_flips(differences))


def test_sign_flips_of_right_and_wrong_are_the_exact_mcnemar_test():
    for first_only, second_only in ((6, 0), (9, 3), (5, 5)):
        assert sign_flips(np.array([1.0] * first_only + [-1.0] * second_only + [0.0] * 7)) == pytest.approx(
            mcnemar(first_only, second_only)
        )


def test_many_sign_flips_are_drawn_near_the_exact_share():
    differences = np.array([1.0] * 40 + [-1.0] * 24)
    assert sign_flips(differences) == pytest.approx(mcnemar(40, 24), abs=0.006)
    assert sign_flips(differences) == sign_flips(differences)
    assert sign_flips(differences, seed=1) != sign_flips(differences)
    assert sign_flips(np.ones(60)) == 1 / 10_001  # never 0: what was found is one of the flips


def test_fractions():
    draw = np.random.default_rng(2)
    first, second = draw.choice([0, 0.3, 0.6, 1], size=(2, 300))
    found = compare_paired(first, second)
    assert found.test == "sign flips"
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.first_only, found.second_only) == (int((first > second).sum()), int((second > first).sum()))
    drawn = draw.integers(300, size=(20_000, 300))
    slow = np.quantile((first - second)[drawn].mean(1), (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx(slow, abs=0.005)
    normal = math.erfc(
        abs(first - second).sum() and abs((first - second).sum()) / math.sqrt(2 * ((first - second) ** 2).sum())
    )
    assert found.p == pytest.approx(normal, abs=0.02)


def test_units_are_flipped_and_drawn_whole():
    """Each question ten times: the interval is that of the tenth, and p too; counted singly both are too sure."""
    first, second = outcomes(both=10, first_only=9, second_only=3, neither=8)
    many = [value for value in first for _ in range(10)], [value for value in second for _ in range(10)]
    units = [str(number) for number in range(30) for _ in range(10)]
    alone, singly, whole = compare_paired(first, second), compare_paired(*many), compare_paired(*many, units)
    assert whole.test == "sign flips"
    assert whole.p == pytest.approx(alone.p)
    assert (whole.difference, whole.low, whole.high) == pytest.approx(
        (alone.difference, alone.low, alone.high), abs=0.03
    )
    assert singly.p < alone.p / 5
    assert whole.high - whole.low > 2.5 * (singly.high - singly.low)


def test_units_of_unequal_sizes_count_by_their_questions():
    first, second, units = [1, 1, 1, 0, 0], [0, 0, 0, 0, 1], ["a", "a", "a", "", ""]
    found = compare_paired(first, second, units)
    assert found.difference == pytest.approx(0.4)
    assert found.p == pytest.approx(slow_flips([3, 0, -1]))


def test_units_of_their_own_are_no_units():
    first, second = outcomes(both=5, first_only=4, second_only=1, neither=5)
    assert compare_paired(first, second, [""] * 15) == compare_paired(first, second)
    assert compare_paired(first, second, [str(n) for n in range(15)]) == compare_paired(first, second)
    with pytest.raises(DataError, match="15 paired outcomes have 2 units"):
        compare_paired(first, second, ["a", "a"])


def test_seeds_with_units():
    draw = np.random.default_rng(5)
    a, b = draw.choice([0.0, 0.5, 1.0], size=(2, 3, 60))
    units = [str(n // 4) for n in range(60)]
    found = compare_seeds(a.tolist(), b.tolist(), units)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p == compare_paired(a[0], b[0], units).p
    slow = []
    for _ in range(4000):
        chosen = (draw.integers(15, size=15)[:, None] * 4 + np.arange(4)).ravel()
        slow.append(a[draw.integers(3, size=3)][:, chosen].mean() - b[draw.integers(3, size=3)][:, chosen].mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.015)
