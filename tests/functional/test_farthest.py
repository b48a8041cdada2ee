import pytest
import torch

from tokenprune.functional.farthest import BLOCK, max_min


def plain(x, k):
    x = x.double() / x.double().norm(dim=1, keepdim=True)
    distance = 1 - x @ x.T
    picks = [int((distance + torch.diag(torch.full((len(x),), torch.inf))).min(1).values.argmax())]
    while len(picks) < k:
        nearest = distance[:, picks].min(1).values
        nearest[picks] = -torch.inf
        picks.append(int(nearest.argmax()))
    return picks


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 2), (40, 40), (3 * BLOCK, 200)])
def test_same_picks_as_the_plain_loop(n, k):
    x = torch.randn(1, n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert max_min(x, k)[0].tolist() == plain(x[0], k)


def test_rows_are_independent():
    x = torch.randn(3, 300, 8, generator=torch.Generator().manual_seed(0))
    together = max_min(x, 50)
    assert all(torch.equal(together[i : i + 1], max_min(x[i : i + 1], 50)) for i in range(3))


def test_padding_is_nobodys_neighbour():
    x = torch.randn(1, 40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.cat([x, -x[:, :10]], 1)
    valid = torch.arange(50)[None] < 40
    assert torch.equal(max_min(padded, 20, valid), max_min(x, 20))


def test_one_token_and_coinciding_tokens():
    assert max_min(torch.randn(1, 1, 4), 1).tolist() == [[0]]
    assert sorted(max_min(torch.ones(1, 9, 4), 9)[0].tolist()) == list(range(9))


def test_of_two_mutual_nearest_neighbours_the_lower_index_comes_first(monkeypatch):
    monkeypatch.setattr("tokenprune.functional.farthest.BLOCK", 20)  # even indices are compared first
    x = torch.ones(1, 40, 3)
    x[0, :, 2] += torch.linspace(0, 0.1, 40)
    x[0, 11], x[0, 30] = torch.tensor([-1.0, -1, -1]), torch.tensor([-1.0, -1, 0])  # far from all but each other
    assert max_min(x, 1).tolist() == [[11]]
