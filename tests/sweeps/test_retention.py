import pytest

from tokenprune.sweeps.retention import retention, standard_error


def test_retention():
    assert retention(0.45, 0.9) == 0.5
    assert retention(0.9, 0.45) == 2.0
    assert retention(0.1, 0.0) is None
    assert retention(None, 0.5) is None
    assert retention(0.5, None) is None


def test_standard_error_of_right_and_wrong_is_the_binomial_one():
    assert standard_error([0, 1] * 50) == pytest.approx(0.05)
    assert standard_error([1] * 10) == 0.0
    assert standard_error([1, 0, 0]) == (1 / 3 * (1 - 1 / 3) / 3) ** 0.5


def test_standard_error_of_fractions():
    assert standard_error([0.25, 0.75] * 8) == pytest.approx(0.25 / 4)
