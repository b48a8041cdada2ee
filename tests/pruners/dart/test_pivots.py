import torch

from tokenprune.pruners.dart.pivots import largest, least_similar


def test_largest_is_by_l1_norm_and_ascending():
    keys = torch.tensor([[[3.0, 0.0], [-2.0, 2.0], [0.0, 1.0], [2.0, -2.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, True, True, False]])  # by L2 norm, the first would win
    assert largest(keys, 1, valid).tolist() == [[1]]  # and not 3, its equal
    assert largest(keys, 3, valid).tolist() == [[0, 1, 3]]
    assert largest(keys, 5, valid).tolist() == [[0, 1, 2, 3, 4]]


def test_norms_do_not_overflow():
    keys = torch.tensor([[[60000.0, 30000.0], [60000.0, 60000.0]]], dtype=torch.float16)
    assert largest(keys, 1, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[1]]


FEATURES = torch.tensor([[[9.0, 1], [-4, 3], [-4, -3], [1, 9], [0, -1]]])
PIVOTS = torch.tensor([[[1.0, 0], [0, 1]]])


def taken(features, pivots, number, present=None, pool=None):
    present = torch.ones(pivots.shape[:2], dtype=torch.bool) if present is None else torch.tensor(present)
    pool = torch.ones(features.shape[:2], dtype=torch.bool) if pool is None else torch.tensor(pool)
    return [row.nonzero()[:, 0].tolist() for row in least_similar(features, pivots, present, pool, number)]


def test_each_pivot_takes_what_is_least_like_it():
    assert taken(FEATURES, PIVOTS, 1) == [[1]]  # 2 is as far from the first pivot: the lower index
    assert taken(FEATURES, PIVOTS.flip(1), 1) == [[4]]
    assert taken(FEATURES, PIVOTS, 2) == [[1, 4]]
    assert taken(FEATURES, PIVOTS, 3) == [[1, 2, 4]]  # the first takes one more
    assert taken(FEATURES, PIVOTS, 4) == [[0, 1, 2, 4]]  # what the first took is not there for the second
    assert taken(FEATURES, PIVOTS, 5) == [[0, 1, 2, 3, 4]]
    assert taken(FEATURES, PIVOTS, 0) == [[]]


def test_lengths_do_not_matter():
    scaled = FEATURES * torch.tensor([1.0, 5.0, 0.1, 3.0, 7.0])[None, :, None]
    for number in range(6):
        assert taken(scaled, 100 * PIVOTS, number) == taken(FEATURES, PIVOTS, number)


def test_pivots_that_are_absent_do_not_choose_and_pools_are_kept_to():
    features, pivots = FEATURES.expand(2, -1, -1), PIVOTS.expand(2, -1, -1)
    for number, expected in [(1, [[4], [1]]), (2, [[2, 4], [1, 4]])]:
        assert taken(features, pivots, number, present=[[False, True], [True, True]]) == expected
    assert taken(features, pivots, 2, pool=[[True, False, True, True, False], [True] * 5]) == [[0, 2], [1, 4]]
