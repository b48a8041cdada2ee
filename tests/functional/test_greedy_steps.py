import pytest
import torch
from tape import Tape

from tokenprune.functional import greedy
from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.farthest import max_min
from tokenprune.functional.greedy import lazy_greedy, stepwise_greedy
from tokenprune.functional.kernels import KERNELS, KernelMatrix


def features(n, d, batch=2):
    return torch.randn(batch, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def replayed(step, times, device):
    """As ``_repeat`` runs a step on a GPU, but that the tape also runs the step that it records."""
    step()
    with Tape() as tape:
        step()
    for _ in range(times - 2):
        tape.replay()


@pytest.fixture(params=["plain", "replayed"])
def repeat(request, monkeypatch):
    if request.param == "replayed":
        monkeypatch.setattr(greedy, "_repeat", replayed)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("repeat")
def test_same_picks_as_blocks_of_a_determinantal_process(kernel):
    x, valid = features(90, 24), torch.ones(2, 90, dtype=torch.bool)
    valid[1, 10:40] = False
    quality = 0.1 + torch.rand(2, 90, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = KernelMatrix.of(x, kernel, quality, valid)
    expected = greedy_map(matrix, 40, valid)
    assert torch.equal(greedy_map(matrix, 40, valid, stepwise_greedy), expected)


@pytest.mark.usefixtures("repeat")
def test_same_picks_as_blocks_of_farthest_points():
    x, valid = features(80, 6), torch.ones(2, 80, dtype=torch.bool)
    valid[0, ::3] = False
    assert torch.equal(max_min(x, 40, valid, stepwise_greedy), max_min(x, 40, valid))


@pytest.mark.usefixtures("repeat")
@pytest.mark.parametrize("x", [features(30, 4), torch.ones(1, 12, 3), torch.zeros(1, 12, 3)])
def test_beyond_the_rank_and_with_duplicates(x):
    x = torch.cat([x, x], dim=1)
    for select in (
        lambda loop: greedy_map(KernelMatrix.of(x), 20, None, loop),
        lambda loop: max_min(x, 20, None, loop),
    ):
        assert torch.equal(select(stepwise_greedy), select(lazy_greedy))


def test_a_tape_finds_a_step_that_reads_back_or_counts_on_the_host():
    total, count = torch.zeros(3), [0]

    def reads():
        total.add_(float(total.sum()))

    def counts():
        total.index_fill_(0, torch.tensor([count[0]]), 1.0)
        count[0] += 1

    with pytest.raises(AssertionError, match="reads a result back"):
        replayed(reads, 3, None)
    replayed(counts, 3, None)
    assert total.tolist() == [1, 1, 0]  # the third replay repeats the second step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("k", [1, 2, 40])
def test_same_picks_as_a_cuda_graph(k):
    matrix = KernelMatrix.of(features(90, 24))
    on_gpu = KernelMatrix.of(features(90, 24).cuda())
    assert torch.equal(greedy_map(on_gpu, k, None, stepwise_greedy).cpu(), greedy_map(matrix, k))
