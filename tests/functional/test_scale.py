import pytest
import torch

from tokenprune.functional.scale import SCALES, min_max, rank, softmax

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_by_hand():
    x = torch.tensor([[2.0, 4.0, 3.0, 4.0]])
    assert min_max(x, ALL)[0].tolist() == pytest.approx([5e-7, 1 + 5e-7, 0.5 + 5e-7, 1 + 5e-7])
    assert softmax(x, ALL).sum().item() == pytest.approx(1)
    assert rank(x, ALL)[0].tolist() == [0.25, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("name", SCALES)
def test_rows_padding_and_constants(name):
    scale = SCALES[name]
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 6:] = False
    both = scale(x, valid)
    assert torch.allclose(both[0], scale(x[:1], valid[:1])[0])
    assert torch.allclose(both[1, :6], scale(x[1:, :6], valid[1:, :6])[0])
    assert (both[1, 6:] == 0).all()
    constant = scale(torch.full((1, 5), 3.0), torch.ones(1, 5, dtype=torch.bool))
    assert (constant == constant[0, 0]).all()
    assert 0 < constant[0, 0] <= 1
