import pytest
import torch

from tokenprune.functional.vectors import inverse_norm, mean_cosine, of_rows, take, unit, widen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert widen(x).dtype == wide
    assert unit(x).dtype == wide
    assert torch.equal(unit(x), (x / x.norm(dim=-1, keepdim=True)).to(wide))


def test_vectors_that_have_no_direction_or_a_huge_norm():
    x = torch.zeros(3, 4, dtype=torch.float16)
    x[1] = 60_000  # its norm exceeds float16
    assert unit(x)[0].tolist() == [0] * 4
    assert (unit(x)[1] > 0).all()
    assert unit(x).isfinite().all()


def test_a_vector_times_its_inverse_norm_has_unit_length_or_is_zero():
    x = torch.tensor([[3.0, 4], [0, 0], [1e-3, 0]])
    assert (x * inverse_norm(x)[:, None]).norm(dim=1).tolist() == pytest.approx([1, 0, 1])


def test_mean_cosine_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 3], [0, 0]]])
    y = torch.tensor([[[2.0, 0], [1, 1], [0, -1]]])
    half = 0.5**0.5
    assert mean_cosine(x, y)[0].tolist() == pytest.approx([(1 + half) / 3, (half - 1) / 3, 0])
    mask = torch.tensor([[True, True, False]])
    assert mean_cosine(x, y, mask)[0].tolist() == pytest.approx([(1 + half) / 2, half / 2, 0])


def test_take():
    x = torch.arange(12).view(2, 3, 2)
    assert take(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    part = torch.arange(24).view(2, 3, 4)[:, :, 1:3]  # not contiguous
    assert take(part, torch.tensor([[1], [2]])).tolist() == [[[5, 6]], [[21, 22]]]


def test_all_rows_are_no_copy():
    x = torch.arange(12).view(3, 4)
    assert of_rows(x, torch.arange(3)) is x
    assert of_rows(x, torch.tensor([0, 2])).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
