import math

import pytest
import torch

from tokenprune.functional.kernels import KERNELS, KernelMatrix, relevance_quality

X = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ALL = torch.arange(40).expand(2, -1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("data", ["random", "duplicates", "zeros", "line"])
def test_positive_semi_definite_and_symmetric(name, data):
    x = {"random": X, "duplicates": X[:, :4].repeat(1, 10, 1), "zeros": X * 0, "line": X[:, :, :1] * X[:, :1]}[data]
    matrix = KernelMatrix.of(x, name, torch.rand(2, 40, dtype=torch.float64))
    whole = matrix.rows(ALL)
    assert torch.allclose(whole, whole.mT, atol=1e-12)
    assert torch.linalg.eigvalsh(whole).min() >= -1e-9 * whole.abs().max()
    assert torch.allclose(whole.diagonal(dim1=1, dim2=2), matrix.diagonal(), atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_are_parts_of_the_whole(name):
    matrix = KernelMatrix.of(X, name, torch.rand(2, 40, dtype=torch.float64))
    index = torch.tensor([[3, 1], [7, 7]])
    expected = torch.stack([whole[i] for whole, i in zip(matrix.rows(ALL), index, strict=True)])
    assert torch.allclose(matrix.rows(index), expected, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("strip", [1, 7, 100])
def test_a_square_is_a_part_of_the_whole(monkeypatch, name, strip):
    monkeypatch.setattr("tokenprune.functional.kernels.STRIP", strip)
    matrix = KernelMatrix.of(X, name, torch.rand(2, 40, dtype=torch.float64))
    index = torch.stack([torch.randperm(40)[:23] for _ in range(2)])
    expected = torch.stack([whole[i][:, i] for whole, i in zip(matrix.rows(ALL), index, strict=True)])
    assert torch.allclose(matrix.square(index), expected, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_features_stay_as_they_are(name):
    x = X.clone()
    matrix = KernelMatrix.of(x, name)
    matrix.rows(ALL), matrix.square(ALL), matrix.diagonal()
    assert torch.equal(x, X)


def test_a_slice_of_the_tokens_is_made_contiguous_once():
    sliced = X.float()[:, 1:]
    assert not sliced.is_contiguous()
    assert KernelMatrix.of(sliced).vectors.is_contiguous()
    assert torch.allclose(KernelMatrix.of(sliced).rows(ALL[:, :5]), KernelMatrix.of(sliced.clone()).rows(ALL[:, :5]))


def test_values_by_hand():
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])
    whole = {name: KernelMatrix.of(x, name).rows(torch.arange(3)[None])[0] for name in KERNELS}
    assert whole["cosine"][0].tolist() == pytest.approx([1, 0, 0.6])
    assert whole["linear"][1].tolist() == pytest.approx([0, 4, 8])
    assert whole["polynomial"][0].tolist() == pytest.approx([1, 0.25, 0.64])
    centroid = x[0].mean(0)
    spread = ((x[0] - centroid) ** 2).sum(1).mean()
    assert whole["rbf"][0, 1].item() == pytest.approx(math.exp(-5 / (2 * spread)), rel=1e-5)
    spread = (x[0] - centroid).abs().sum(1).mean()
    assert whole["laplacian"][0, 1].item() == pytest.approx(math.exp(-3 / spread), rel=1e-5)


def test_a_bandwidth_is_a_factor_of_s():
    narrow = {name: KernelMatrix.of(X, name, bandwidth=0.5).rows(ALL) for name in ("rbf", "laplacian")}
    assert torch.allclose(narrow["rbf"], KernelMatrix.of(X, "rbf").rows(ALL) ** 4)
    assert torch.allclose(narrow["laplacian"], KernelMatrix.of(X, "laplacian").rows(ALL) ** 2)


@pytest.mark.parametrize("name", KERNELS)
def test_padding_does_not_set_the_bandwidth(name):
    valid = torch.arange(40)[None] < 25
    padded = KernelMatrix.of(X[:1], name, valid=valid).rows(ALL[:1, :25])[:, :, :25]
    assert torch.allclose(padded, KernelMatrix.of(X[:1, :25], name).rows(ALL[:1, :25]), atol=1e-12)


def test_relevance_enters_on_both_sides():
    relevance = torch.rand(2, 40, dtype=torch.float64)
    plain, conditioned = (KernelMatrix.of(X, "cosine", q).rows(ALL) for q in (None, relevance))
    assert torch.allclose(conditioned, relevance[:, :, None] * plain * relevance[:, None], atol=1e-12)


def test_theta_weighs_relevance_against_diversity():
    relevance = torch.rand(1, 6, dtype=torch.float64)
    assert torch.equal(relevance_quality(relevance), relevance)
    assert torch.allclose(relevance_quality(relevance, 0.0), torch.ones_like(relevance))
    quality = relevance_quality(relevance, 0.75)  # alpha = 1.5
    assert torch.allclose((quality / quality[:, :1]).log(), 1.5 * (relevance - relevance[:, :1]))
    assert relevance_quality(relevance * 1000, 0.999).isfinite().all()
