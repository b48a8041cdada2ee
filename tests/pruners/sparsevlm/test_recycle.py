import pytest
import torch

from tokenprune.core.errors import SelectionError
from tokenprune.functional.cluster import cluster_means, dpc_knn
from tokenprune.pruners.sparsevlm.recycle import merge_dropped, recycled

FEATURES = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
DROPPED = [torch.arange(10, 50), torch.arange(49, 9, -1)]


def merge(features=FEATURES, dropped=DROPPED, noise=0.0, seed=0, row_ids=None):
    return merge_dropped(features, dropped, noise, seed, row_ids)


@pytest.mark.parametrize(
    ("dropped", "numbers"), [(0, (0, 0)), (1, (1, 1)), (30, (10, 2)), (29, (9, 1)), (276, (83, 9)), (109, (33, 4))]
)
def test_numbers(dropped, numbers):
    assert recycled(dropped) == numbers


@pytest.mark.parametrize("dropped", range(1, 3000, 7))
def test_never_more_than_were_dropped(dropped):
    candidates, merged = recycled(dropped)
    assert 1 <= merged <= candidates <= dropped
    assert recycled(dropped + 1)[1] - merged in (0, 1)


def test_the_best_of_the_dropped_are_merged():
    points = FEATURES[1].flip(0)[:13]  # of 40
    expected = cluster_means(points, dpc_knn(points, 2)[1], 2)
    assert torch.equal(merge()[1], expected)


def test_rows_and_dtypes():
    assert torch.equal(merge()[1:], merge(FEATURES[1:], DROPPED[1:]))
    assert merge(FEATURES.half()).dtype == torch.float16
    with pytest.raises(SelectionError, match="apart"):
        merge(dropped=[DROPPED[0], DROPPED[1][:20]])


def test_noise_depends_on_the_seed_and_the_row_alone():
    ids = torch.tensor([3, 4])
    noisy = merge(noise=100.0, row_ids=ids)  # so much that it decides
    assert not torch.equal(noisy, merge())
    assert torch.equal(noisy, merge(noise=100.0, row_ids=ids))
    assert torch.equal(merge(noise=1e-9, row_ids=ids), merge())
    assert torch.equal(noisy[1:], merge(FEATURES[1:], DROPPED[1:], 100.0, row_ids=ids[1:]))
    assert not torch.equal(noisy, merge(noise=100.0, row_ids=ids, seed=1))
    assert not torch.equal(noisy, merge(noise=100.0, row_ids=ids + 5))
    assert torch.equal(merge(noise=100.0)[1:], merge(FEATURES[1:], DROPPED[1:], 100.0))  # without ids: of the features
