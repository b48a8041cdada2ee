import torch

from tokenprune.functional.draws import contents, uniform

FEATURES = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def test_ids_stand_for_rows():
    assert contents(FEATURES, None, torch.tensor([7, 12])) == [b"7", b"12"]


def test_without_ids_valid_features_do():
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    first, second = contents(FEATURES, valid, None)
    assert first == contents(FEATURES, None, None)[0]
    assert second == contents(FEATURES[1:, :3], None, None)[0]
    assert first != second


def test_draws_depend_on_content_and_key():
    draw = uniform(b"7", 1000, "0")
    assert torch.equal(draw, uniform(b"7", 1000, "0"))
    assert 0 <= draw.min() < 0.02
    assert 0.98 < draw.max() < 1
    assert not torch.equal(draw, uniform(b"8", 1000, "0"))
    assert not torch.equal(draw, uniform(b"7", 1000, "1"))
