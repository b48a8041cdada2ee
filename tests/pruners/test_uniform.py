import pytest
import torch

from tokenprune import VisualTokens, create_pruner


def keep(n, k, grid=None, valid=None):
    return (
        create_pruner("uniform").select(VisualTokens(torch.randn(1, n, 2), grid=grid, valid=valid), k).keep[0].tolist()
    )


def test_by_hand():
    assert keep(9, 3) == [1, 4, 7]
    # The curve visits the quarters 0 1 4 5, 2 3 6 7, 8 9 12 13, 10 11 14 15: the third of each is kept.
    assert keep(16, 4, grid=(4, 4)) == [4, 6, 12, 14]


@pytest.mark.parametrize("k", [16, 24, 48, 36])
def test_every_quarter_of_the_image_keeps_as_many(k):
    kept = torch.tensor(keep(256, k, grid=(16, 16)))
    row, column = kept // 16, kept % 16
    quarters = torch.bincount(row // 8 * 2 + column // 8, minlength=4)
    assert quarters.tolist() == [k // 4] * 4


def test_padding_is_skipped():
    valid = torch.tensor([[True, False, True, False, True, True]])
    assert keep(6, 4, valid=valid) == [0, 2, 4, 5]
