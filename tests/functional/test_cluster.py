import pytest
import torch
from golden_data import load

from tokenprune.costs.memory import peak_bytes
from tokenprune.functional import cluster
from tokenprune.functional.cluster import cluster_means, dpc_knn


def literal(x, clusters, noise=None):
    """The formulas, one point after another, in float64."""
    n, size = x.shape
    distance = [[float((a - b).norm()) / size**0.5 for b in x.double()] for a in x.double()]
    density = [2.718281828459045 ** (-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in distance]
    density = [a + b for a, b in zip(density, noise or [0] * n, strict=True)]
    largest = max(map(max, distance))
    scores = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (-density[j], j) < (-density[i], i)]
        scores.append(density[i] * (min(denser) if denser else largest))
    centers = sorted(range(n), key=lambda i: -scores[i])[:clusters]
    nearest = [
        centers.index(i) if i in centers else min(range(clusters), key=lambda c: distance[i][centers[c]])
        for i in range(n)
    ]
    return centers, nearest


def test_official_clusters():
    case = load("sparsevlm_cluster_n83_c9")
    x = case["x"][0]
    centers, nearest = dpc_knn(x, 9, 1e-6 * case["noise"][0])
    assert torch.equal(centers, case["centers"].long())
    assert torch.equal(nearest, case["assign"].long())
    torch.testing.assert_close(cluster_means(x, nearest, 9), case["merged"][0], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("clusters", [1, 2, 4, 30])
def test_literal_transcription(clusters):
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    centers, nearest = dpc_knn(x, clusters)
    assert (centers.tolist(), nearest.tolist()) == literal(x, clusters)
    noise = torch.rand(30, generator=torch.Generator().manual_seed(1))
    centers, nearest = dpc_knn(x, clusters, noise)
    assert (centers.tolist(), nearest.tolist()) == literal(x, clusters, noise.tolist())


def test_by_hand():
    # Squared distances to the nearest: 1, 1, 1.21, 1.21, 1.21, 1.44. Point 0 is the densest, as the first of two; point
    # 1 is as dense, but close to it. Of the others 3 and 4 are the densest, and 3, the first, is far from denser ones.
    x = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.1], [12.3]])
    centers, nearest = dpc_knn(x, 2)
    assert centers.tolist() == [0, 3]
    assert nearest.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(cluster_means(x, nearest, 2), torch.tensor([[3.1 / 3], [33.4 / 3]]))


def test_noise_makes_another_point_the_densest():
    x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])  # all are equally dense
    assert dpc_knn(x, 2)[0].tolist() == [0, 2]
    assert dpc_knn(x, 2, torch.tensor([0.0, 0, 0, 1e-3]))[0].tolist() == [3, 0]
    assert dpc_knn(x, 2, torch.zeros(4))[0].tolist() == [0, 2]


def test_densities_that_underflow_still_differ():
    x = 25 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    centers, nearest = dpc_knn(x, 4)
    assert (-torch.cdist(x, x).topk(4, largest=False).values.square().mean(1) / 5).exp().eq(0).sum() > 20
    assert (centers.tolist(), nearest.tolist()) == literal(x, 4)  # in float64 they do not underflow


def test_nearly_coinciding_points_stay_together():
    generator = torch.Generator().manual_seed(0)
    groups = 100 * torch.randn(5, 64, generator=generator)
    x = groups.repeat_interleave(8, 0) + 1e-5 * torch.randn(40, 64, generator=generator)  # rounding cannot tell
    centers, nearest = dpc_knn(x, 5)
    assert sorted((centers // 8).tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(centers[nearest] // 8, torch.arange(40) // 8)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_nearest_neighbours_the_first_is_the_denser(seed):
    x = torch.randn(15, 64, generator=torch.Generator().manual_seed(seed))
    distance = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    first, second = divmod(int(distance.argmin()), 15)
    center = dpc_knn(x, 2)[0][0]
    assert center == min(first, second)  # the densest of all, as its separation is the largest


def test_centers_of_twins_keep_a_cluster_each():
    centers, nearest = dpc_knn(torch.ones(6, 3), 4)
    assert centers.tolist() == [0, 1, 2, 3]
    assert nearest.tolist() == [0, 1, 2, 3, 0, 0]
    assert torch.equal(cluster_means(torch.ones(6, 3), nearest, 4), torch.ones(4, 3))


def test_close_points_far_from_the_origin_are_told_apart():
    x = torch.tensor([0.0, 1, 3, 10, 12, 15]).repeat_interleave(5)[:, None] / 64
    assert torch.equal(dpc_knn(x + 4096, 6)[1], dpc_knn(x, 6)[1])
    assert dpc_knn(x, 6)[1].unique().numel() == 6


@pytest.mark.parametrize("numbers", [1, 70, 899])
def test_in_blocks_it_is_the_same(monkeypatch, numbers):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(30, 5, generator=generator), torch.rand(30, generator=generator)
    x[7] = x[3]
    whole = dpc_knn(x, 6, noise)
    monkeypatch.setattr(cluster, "NUMBERS", numbers)
    assert [part.tolist() for part in dpc_knn(x, 6, noise)] == [part.tolist() for part in whole]
    assert not torch.cat(list(cluster._Distances(x))).diagonal().any()


def test_many_points_take_little_memory(monkeypatch):
    monkeypatch.setattr(cluster, "NUMBERS", 2**16)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    assert peak_bytes(lambda: dpc_knn(x, 20), torch.device("cpu")) < 2000 * 2000 * 4 / 2
