"""How numbers look."""

import pytest

from tokenprune.report.numbers import budget, chance, engineering, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999.4, "999"), (999.6, "1k"), (1500, "1.5k"), (7.634e12, "7.63T"), (2e18, "2e+03P")],
)
def test_engineering(value, text):
    assert engineering(value) == text


def test_percent():
    assert [percent(None), percent(0.931), percent(0.931, 0.0042)] == ["-", "93.1", "93.1 ± 0.4"]


def test_chance():
    assert [chance(0.0123), chance(1.0), chance(3.2e-9)] == ["0.012", "1", "3e-09"]


def test_budget():
    assert budget({}) == "all"
    assert budget({"flops": 330624000.0, "text_tokens": 10}) == "flops=331M text_tokens=10"
