"""Curves: monotone, through the points where these are monotone, and without overshoot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.core.errors import ConfigError
from tokenprune.pruners.dop.curves import Curve, Curves


@st.composite
def measurements(draw):
    full = draw(st.integers(1, 60))
    divergence = st.floats(0, 20, allow_subnormal=False)
    return draw(st.dictionaries(st.integers(0, full - 1), divergence, max_size=12)), full


@settings(deadline=None, max_examples=300)
@given(measurements())
def test_never_rises_and_ends_at_zero(measured):
    points, full = measured
    values = Curve(points, full).values
    assert values.shape == (full + 1,)
    assert values[-1] == 0
    assert (values >= 0).all()
    assert (values[1:] <= values[:-1]).all()  # infinite ones too
    smallest = min(points, default=full)
    assert np.isinf(values[:smallest]).all()
    assert np.isfinite(values[smallest:]).all()


@settings(deadline=None, max_examples=300)
@given(measurements())
def test_passes_through_monotone_points_without_overshoot(measured):
    points, full = measured
    falling = dict(zip(sorted(points), sorted(points.values(), reverse=True), strict=True))
    values = Curve(falling, full).values
    knots = [*falling, full]
    heights = [*falling.values(), 0.0]
    np.testing.assert_allclose(values[knots], heights, rtol=1e-12, atol=1e-12)
    for left, right, high, low in zip(knots, knots[1:], heights, heights[1:], strict=False):
        between = values[left : right + 1]
        assert (between <= high * (1 + 1e-12)).all()
        assert (between >= low * (1 - 1e-12) - 1e-12).all()


@settings(deadline=None, max_examples=200)
@given(measurements())
def test_isotonic_regression_by_min_max(measured):
    """At the measured points: the textbook formula, the smallest over i of the largest mean of points i to j."""
    points, full = measured
    curve = Curve(points, full)
    heights = [*curve.points.values(), 0.0]
    for at, value in enumerate([*curve.points, full]):
        expected = min(max(np.mean(heights[i : j + 1]) for j in range(at, len(heights))) for i in range(at + 1))
        assert curve.values[value] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_by_hand():
    curve = Curve({4: 1.0, 0: 2.0, 2: 3.0}, full=6)
    assert curve.points == {0: 2.0, 2: 3.0, 4: 1.0}  # as measured, sorted
    assert curve.values[[0, 1, 2]].tolist() == [2.5, 2.5, 2.5]  # 2 and 3 are out of order: their mean
    # At 4 PCHIP's slope is the harmonic mean of -3/4 and -1/2, and at 2 and 3 it is that of a cubic Hermite piece.
    slope = 2 / (1 / -0.75 + 1 / -0.5)
    assert curve.values[3] == pytest.approx((2.5 + 1.0) / 2 + (0 - slope) * 2 / 8)
    assert curve.values[[4, 6]].tolist() == [1.0, 0.0]


def test_interpolation_that_is_off_in_the_last_bit():
    """PCHIP alone rises here by 4e-16."""
    heights = [3.3000000000000007, 3.3000000000000007, 3.3000000000000003, 3.3000000000000003, 3.3000000000000003]
    values = Curve(dict(zip([23, 40, 91, 140, 162], heights, strict=True)), 163).values[23:]
    assert (values[1:] <= values[:-1]).all()


def test_nothing_measured_means_nothing_pruned():
    assert Curve({}, 3).values.tolist() == [np.inf, np.inf, np.inf, 0.0]
    assert Curve({}, 0).values.tolist() == [0.0]


def test_rounding_below_zero_is_zero():
    curve = Curve({1: 1e-9, 2: -2e-5, 4: 1e-6}, 4)
    assert curve.points[2] == -2e-5  # the report shows what was measured
    assert (curve.values[1:] >= 0).all()
    assert curve.values[2] == curve.values[4] == 0
    assert Curve({1: -2e-5, 2: 1e-5}, 4).values[1] == 5e-6


def test_values_are_shared_and_cannot_be_written():
    curve = Curve({0: 1.0}, 2)
    assert curve.values is curve.values
    with pytest.raises(ValueError, match="read-only"):
        curve.values[0] = 3


@pytest.mark.parametrize(
    ("points", "full", "message"),
    [
        ({5: 0.1}, 4, "a curve has a point at 5; allowed: integers from 0 to 4"),
        ({-1: 0.1}, 4, "a curve has a point at -1"),
        ({1.5: 0.1}, 4, "a curve has a point at 1.5"),
        ({1: float("nan")}, 4, "a curve has the divergence nan at 1"),
        ({1: float("inf")}, 4, "a curve has the divergence inf at 1"),
        ({1: -0.01}, 4, "a curve has the divergence -0.01 at 1; it cannot be below 0"),
        ({4: 0.2}, 4, "a curve has the divergence 0.2 at 4, where nothing is pruned; it must be 0"),
        ({}, -1, "a curve must end at an integer of at least 0, got -1"),
    ],
)
def test_impossible_points(points, full, message):
    with pytest.raises(ConfigError) as error:
        Curve(points, full)
    assert message in str(error.value)


def test_ends_of_all_curves():
    """What the last layer writes for visual tokens is dead, so nothing is pruned at layers - 1 already."""
    points = {"attention": {2: 1.0}, "mlp": {2: 1.0}, "tokens": {3: 1.0}}
    two = Curves.of(6, 9, **points)
    assert (two.attention.full, two.mlp.full, two.tokens.full, two.query) == (6, 5, 9, None)
    assert (two.layers, two.visual_tokens) == (6, 9)
    assert list(two.to_mapping()) == ["attention", "mlp", "tokens"]
    three = Curves.of(6, 9, **points, query={1: 1.0})
    assert three.query.full == 5
    assert list(three.to_mapping()) == ["attention", "query", "mlp", "tokens"]
    other = Curves.of(6, 9, **points, update_only=True)
    assert (other.attention.full, other.mlp.full) == (5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp": {6: 0.0}}, "mlp: a curve has a point at 6; allowed: integers from 0 to 5"),
        ({"query": {}, "update_only": True}, "a curve over query has no meaning with update_only"),
        ({"attention": {6: 0.0}, "update_only": True}, "attention: a curve has a point at 6"),
        ({"tokens": {10: 0.0}}, "tokens: a curve has a point at 10; allowed: integers from 0 to 9"),
    ],
)
def test_impossible_curves(options, message):
    with pytest.raises(ConfigError) as error:
        Curves.of(6, 9, **{"attention": {}, "mlp": {}, "tokens": {}} | options)
    assert message in str(error.value)


def test_curves_of_different_models():
    with pytest.raises(ConfigError, match=r"the curve over attention ends at 4, but .* asks for 6"):
        Curves(Curve({}, 4), Curve({}, 5), Curve({}, 9))
