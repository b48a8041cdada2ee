"""The latency model finds what made its timings, and says so when it does not."""

import itertools
from statistics import fmean

import numpy as np
import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.pruners.dop.latency import AttentionTiming, LatencyModel, MlpTiming

TRUE = LatencyModel((0.8, 2e-3, 5e-3, 7e-6), (0.4, 9e-3))
COUNTS = (40, 100, 300, 700, 1500)
UNSEEN = (64, 200, 1000)


def timings(counts, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)

    def factor():
        return float(np.exp(noise * rng.standard_normal()))

    attention = [
        AttentionTiming(s, r, TRUE.attention_milliseconds(s, r) * factor())
        for s, r in itertools.product(counts, counts)
        if r <= s
    ]
    return attention, [MlpTiming(n, TRUE.mlp_milliseconds(n) * factor()) for n in counts]


def errors(model, attention, mlp):
    """Relative ones of a model on timings."""
    return (
        [abs(model.attention_milliseconds(t.sources, t.receivers) / t.milliseconds - 1) for t in attention],
        [abs(model.mlp_milliseconds(t.tokens) / t.milliseconds - 1) for t in mlp],
    )


def test_terms_by_hand():
    assert TRUE.attention_milliseconds(100, 40) == pytest.approx(0.8 + 0.2 + 0.2 + 0.028)
    assert TRUE.mlp_milliseconds(100) == pytest.approx(0.4 + 0.9)


def test_exact_timings_give_the_coefficients_back():
    model = LatencyModel.fit(*timings(COUNTS))
    assert model.attention == pytest.approx(TRUE.attention, rel=1e-6)
    assert model.mlp == pytest.approx(TRUE.mlp, rel=1e-6)
    assert max(map(max, errors(model, *timings(UNSEEN)))) < 1e-6


def test_noisy_timings_still_predict_others():
    model = LatencyModel.fit(*timings(COUNTS, noise=0.03))
    for found in errors(model, *timings(UNSEEN)):
        assert 1e-4 < fmean(found) <= max(found) < 0.05


def test_no_coefficient_is_negative():
    """Timings that fall with the number of tokens, as noise may have it: the slope is 0, not below."""
    mlp = [MlpTiming(100, 2.0), MlpTiming(200, 1.0)]
    model = LatencyModel.fit(timings(COUNTS)[0], mlp)
    assert model.mlp[1] == 0
    assert model.mlp[0] == pytest.approx((1 / 2 + 1) / (1 / 4 + 1))  # least squares of the relative errors


def test_a_wrong_model_fits_badly():
    attention, _ = timings(COUNTS)
    quadratic = [MlpTiming(n, 1e-4 * n * n) for n in COUNTS]
    of_attention, of_mlp = errors(LatencyModel.fit(attention, quadratic), attention, quadratic)
    assert max(of_mlp) > 0.3
    assert max(of_attention) < 1e-6


@pytest.mark.parametrize(
    ("attention", "mlp", "message"),
    [
        ([], timings(COUNTS)[1], "0 timings of the attention do not tell its coefficients apart"),
        (
            [AttentionTiming(n, n, 1.0 + n) for n in COUNTS],
            timings(COUNTS)[1],
            "5 timings of the attention do not tell its coefficients apart",
        ),
        (timings(COUNTS)[0], [MlpTiming(5, 1.0), MlpTiming(5, 1.1)], "2 timings of the mlp do not tell"),
        (timings(COUNTS)[0], [MlpTiming(5, 1.0), MlpTiming(6, 0.0)], "a timing of the mlp is not a positive number"),
        (
            [*timings(COUNTS)[0], AttentionTiming(5, 5, float("nan"))],
            timings(COUNTS)[1],
            "a timing of the attention is not a positive number",
        ),
    ],
)
def test_timings_that_cannot_be_fitted(attention, mlp, message):
    with pytest.raises(ConfigError) as error:
        LatencyModel.fit(attention, mlp)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("attention", "mlp", "message"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0), "attention must be 4 numbers of at least 0, got [1.0, 1.0, 1.0]"),
        ((1.0, 1.0, 1.0, -1.0), (1.0, 1.0), "attention must be 4 numbers"),
        ((1.0, 1.0, 1.0, 1.0), (1.0, float("inf")), "mlp must be 2 numbers of at least 0, got [1.0, inf]"),
    ],
)
def test_impossible_coefficients(attention, mlp, message):
    with pytest.raises(ConfigError) as error:
        LatencyModel(attention, mlp)
    assert message in str(error.value)
