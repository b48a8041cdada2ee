import pytest
import torch

from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.greedy import CANDIDATES
from tokenprune.functional.kernels import KERNELS, KernelMatrix


def plain(kernel, k, floor=1e-10):
    """The loop over all tokens, one pick at a time, on the whole matrix in float64."""
    kernel = kernel.double()
    gain, rows, picks = kernel.diagonal().clone(), [], []
    start = gain.clone()
    for _ in range(k):
        live = torch.where(gain > floor * start, gain, -torch.inf)
        live[picks] = -torch.inf
        if live.max() == -torch.inf:  # nothing left to gain: lowest indices
            return picks + [i for i in range(len(kernel)) if i not in picks][: k - len(picks)]
        j = int(live.argmax())
        row = (kernel[j] - sum((c[j] * c for c in rows), torch.zeros(len(kernel)))) / gain[j].sqrt()
        rows.append(row)
        gain = gain - row**2
        picks.append(j)
    return picks


def features(n, d, seed=0, batch=1):
    return torch.randn(batch, n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "k"), [(50, 20), (3 * CANDIDATES[1], 100)])
def test_same_picks_as_the_plain_loop(kernel, n, k):
    x = features(n, 24)
    quality = torch.rand(1, n, generator=torch.Generator().manual_seed(1))
    matrix = KernelMatrix.of(x.double(), kernel, quality.double())
    whole = matrix.rows(torch.arange(n)[None])[0]
    assert greedy_map(matrix, k)[0].tolist() == plain(whole, min(k, n))


def test_many_blocks_of_few_candidates_give_the_same_picks(monkeypatch):
    quality = 0.5 + torch.rand(1, 120, generator=torch.Generator().manual_seed(1))
    matrix = KernelMatrix.of(features(120, 200).double(), quality=quality)
    once = greedy_map(matrix, 100)
    monkeypatch.setattr("tokenprune.functional.greedy.CANDIDATES", (5, 9))
    assert torch.equal(greedy_map(matrix, 100), once)
    assert once[0].tolist() == plain(matrix.rows(torch.arange(120)[None])[0], 100)


def test_rows_that_need_different_numbers_of_blocks(monkeypatch):
    monkeypatch.setattr("tokenprune.functional.greedy.CANDIDATES", (8, 8))
    x = torch.cat([features(90, 30), features(90, 4, seed=1).repeat(1, 1, 8)[..., :30]])
    both = greedy_map(KernelMatrix.of(x), 40)
    assert all(torch.equal(both[i], greedy_map(KernelMatrix.of(x[i : i + 1]), 40)[0]) for i in range(2))


def test_duplicates_are_picked_once_and_ties_go_to_the_lowest_index():
    x = features(10, 32).repeat(1, 3, 1)  # token i = token i + 10 = token i + 20
    order = greedy_map(KernelMatrix.of(x), 25)[0].tolist()
    assert len(set(order)) == 25
    assert set(order[:10]) == set(range(10))
    assert order[10:] == list(range(10, 25))


def test_beyond_the_rank_the_lowest_indices_follow():
    order = greedy_map(KernelMatrix.of(features(40, 6)), 12)[0].tolist()
    assert order[6:] == [i for i in range(40) if i not in order[:6]][:6]


def test_invalid_tokens_are_never_picked():
    valid = torch.ones(1, 30, dtype=torch.bool)
    valid[0, ::2] = False
    order = greedy_map(KernelMatrix.of(features(30, 8), valid=valid), 15, valid)[0]
    assert (order % 2 == 1).all()
    assert len(order.unique()) == 15


def test_only_rows_of_picks_and_candidates_are_computed(monkeypatch):
    """Memory is O(N k + N D): no block of the kernel may come near N x N."""
    largest = []

    def watched(method):
        def run(self, *index):
            result = method(self, *index)
            largest.append(result.numel())
            return result

        return run

    for name in ("rows", "square"):
        monkeypatch.setattr(KernelMatrix, name, watched(getattr(KernelMatrix, name)))
    n = 4000
    greedy_map(KernelMatrix.of(features(n, 16)), 64)
    assert max(largest) <= n * CANDIDATES[0] < n * n / 20
    assert len(largest) > 2
