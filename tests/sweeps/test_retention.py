import pytest

from tokenprune.sweeps.retention import retention, standard_error


def test_retention():
    assert retention(0.45, 0.9) == 0.5
    assert retention(0.9, 0.45) == 2.0
    assert retention(0.1, 0.0) is None


def test_standard_error():
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(1.0, 10) == 0.0
