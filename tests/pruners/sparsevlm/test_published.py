import pytest

from tokenprune.pruners.sparsevlm.published import counts_between, scaled_layers

LISTS = [(40, 20), (60, 10)]  # of 100


@pytest.mark.parametrize(
    ("keep", "total", "counts"),
    [
        (0, 100, (0, 0)),
        (0, 0, (0, 0)),
        (5, 100, (30, 5)),
        (10, 100, (60, 10)),
        (15, 100, (50, 15)),
        (20, 100, (40, 20)),
        (60, 100, (70, 60)),
        (100, 100, (100, 100)),
        (40, 200, (80, 40)),
        (1, 10, (6, 1)),
        (2, 9, (4, 2)),  # of 3.75
        (2, 3, (2, 2)),  # of 0.8
    ],
)
def test_counts_by_hand(keep, total, counts):
    assert counts_between(LISTS, 100, keep, total) == counts


def test_no_stage_has_more_than_the_one_before():
    assert counts_between([(50, 51)], 100, 51, 100) == (51, 51)


@pytest.mark.parametrize(
    ("target", "layers"), [(32, (2, 6, 15)), (40, (2, 8, 19)), (28, (2, 5, 13)), (5, (0, 1, 2)), (4, (0, 1, 2))]
)
def test_layers_by_hand(target, layers):
    assert scaled_layers((2, 6, 15), 32, target) == layers


def test_layers_stay_apart():
    assert scaled_layers((2, 3, 4, 5), 32, 8) == (0, 1, 2, 3)  # of 0.5, 0.75, 1, 1.25


@pytest.mark.parametrize("target", range(4, 100))
def test_layers_fit_and_ascend(target):
    layers = scaled_layers((2, 6, 15), 32, target)
    assert 0 <= layers[0] < layers[1] < layers[2] < target - 1
