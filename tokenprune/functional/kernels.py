"""Similarity kernels, all positive semi-definite, and the kernel matrix that relevance conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from tokenprune.core.registry import enter
from tokenprune.functional.vectors import inverse_norm, take, unit, widen

STRIP = 256  # rows of a symmetric block at a time; of each strip only what is right of its start is computed


class Kernel(ABC):
    """A similarity of tokens, computed a block at a time so that no caller needs the N x N matrix.

    The first line of a kernel's docstring is its formula, for listings.

    Attributes:
        radial: whether it depends on differences over a bandwidth s alone.
    """

    radial: ClassVar[bool] = False

    @abstractmethod
    def points(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Points that ``block`` works on: features, prepared once.

        Args:
            features: (B, N, D).
            valid: (B, N) bool; only these tokens set the bandwidth.

        Returns:
            Vectors (B, N, D) and a factor of each, (B, N): together the points. A factor spares a copy of all features.
        """

    @abstractmethod
    def block(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
        """Kernel values (B, n, m) between points (B, n, D) and vectors (B, m, D) times a factor (B, m)."""

    def diagonal(self, vectors: Tensor, factor: Tensor) -> Tensor:
        """Kernel values (B, N) of points with themselves."""
        return torch.ones_like(factor)


class Linear(Kernel):
    """<x, y>."""

    def points(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return _points(widen(features))

    def block(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        products: Tensor = x @ y.mT
        return products.mul_(factor[:, None])

    def diagonal(self, vectors: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1) * factor
        return norms.square()


class Cosine(Linear):
    """cos(x, y)."""

    def points(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        if widen(features) is features:
            return features, inverse_norm(features)
        return _points(unit(features))

    def diagonal(self, vectors: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        squares = super().diagonal(vectors, factor)
        rounding = (squares - 1).abs() < 16 * torch.finfo(squares.dtype).eps  # more than that comes of half precision
        return squares.masked_fill(rounding, 1)


class Polynomial(Cosine):
    """((1 + cos(x, y)) / 2)^2."""

    def block(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        return (0.5 + 0.5 * super().block(x, y, factor)).square()

    def diagonal(self, vectors: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        return (0.5 + 0.5 * super().diagonal(vectors, factor)).square()


class RBF(Kernel):
    """exp(-|x - y|^2 / (2 s^2)), s^2 = mean squared distance to the centroid.

    The mean of |x - y|^2 over all pairs is 2 s^2, so the exponent is -1 on average, and the bandwidth costs O(N D).
    """

    radial = True

    def points(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        offsets = _from_centroid(features, valid)
        return offsets, _inverse_bandwidth(offsets.square().sum(-1), valid).sqrt()

    def block(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        norms = torch.linalg.vector_norm(y, dim=-1) * factor
        squares = 0.5 * (x.square().sum(-1)[..., :, None] + norms.square()[..., None, :])
        products: Tensor = x @ y.mT
        return products.mul_(factor[:, None]).sub_(squares).clamp_(max=0).exp_()


class Laplacian(Kernel):
    """exp(-|x - y|_1 / s), s = mean L1 distance to the centroid."""

    radial = True

    def points(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        offsets = _from_centroid(features, valid)
        return offsets, _inverse_bandwidth(offsets.abs().sum(-1), valid)

    def block(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:  # noqa: D102
        scale = factor[:, :1, None]  # the same for all tokens of a row
        return torch.cdist(x / scale, y, p=1).mul_(-scale).exp_()


def _points(vectors: Tensor) -> tuple[Tensor, Tensor]:
    return vectors, vectors.new_ones(vectors.shape[:-1])


def _from_centroid(features: Tensor, valid: Tensor) -> Tensor:
    """(B, N, D) offsets from the mean of the row's valid tokens."""
    x, weight = widen(features), valid[..., None]
    return x - (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def _inverse_bandwidth(distances: Tensor, valid: Tensor) -> Tensor:
    """(B, N) one over the mean of (B, N) distances over a row's valid tokens; finite also if all of them coincide."""
    mean = (distances * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).reciprocal().expand_as(distances)


K = TypeVar("K", bound=Kernel)
KERNELS: dict[str, Kernel] = {
    "cosine": Cosine(),
    "linear": Linear(),
    "rbf": RBF(),
    "polynomial": Polynomial(),
    "laplacian": Laplacian(),
}


def register_kernel(name: str) -> Callable[[type[K]], type[K]]:
    """Class decorator that makes a kernel known, so that ``kernel: <name>`` of CDPruner is it.

    Args:
        name: public name.

    Raises:
        RegistryError: if the name is malformed or taken.
    """

    def register(kernel: type[K]) -> type[K]:
        made: Kernel = kernel()
        enter("kernel", KERNELS, name, made)
        return kernel

    return register


@dataclass(frozen=True, eq=False)
class KernelMatrix:
    """The matrices L = diag(q) S diag(q), one a row, that a kernel S and a quality q of each token make.

    log det L_A = sum over A of log q^2 + log det S_A, so the quality weighs relevance against diversity.

    Attributes:
        kernel: S.
        vectors: (B, N, D); times ``factor`` they are what the kernel works on.
        factor: (B, N).
        quality: (B, N) q, not negative.
    """

    kernel: Kernel
    vectors: Tensor
    factor: Tensor
    quality: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor,
        kernel: str = "cosine",
        quality: Tensor | None = None,
        valid: Tensor | None = None,
        bandwidth: float = 1.0,
    ) -> KernelMatrix:
        """The matrices of features, one a row.

        Args:
            features: (B, N, D).
            kernel: a key of ``KERNELS``.
            quality: (B, N); None is 1 everywhere.
            valid: (B, N) bool, False for padding.
            bandwidth: factor of s in a radial kernel; others have 1.
        """
        valid = features.new_ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
        vectors, factor = KERNELS[kernel].points(features, valid)
        quality = torch.ones_like(factor) if quality is None else quality.to(factor)
        return cls(KERNELS[kernel], vectors.contiguous(), factor / bandwidth, quality)

    def diagonal(self) -> Tensor:
        """The diagonal of each matrix, (B, N)."""
        return self.quality * self.kernel.diagonal(self.vectors, self.factor) * self.quality

    def rows(self, index: Tensor) -> Tensor:
        """Rows (B, n, N) of each matrix, those of the tokens (B, n)."""
        x, q = self._some(index)
        return self.kernel.block(x, self.vectors, self.factor).mul_(q[:, :, None]).mul_(self.quality[:, None, :])

    def square(self, index: Tensor) -> Tensor:
        """Entries (B, n, n) of each matrix for tokens (B, n) among each other, for little over half the products."""
        x, q = self._some(index)
        ones, n = torch.ones_like(q), x.shape[1]
        whole = x.new_empty(len(x), n, n)
        for start in range(0, n, STRIP):
            end = start + STRIP
            whole[:, start:end, start:] = self.kernel.block(x[:, start:end], x[:, start:], ones[:, start:])
            whole[:, end:, start:end] = whole[:, start:end, end:].mT
        return whole.mul_(q[:, :, None]).mul_(q[:, None, :])

    def _some(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, n, D) and quality (B, n) of tokens (B, n)."""
        points = take(self.vectors, index).mul_(self.factor.gather(1, index)[..., None])
        return points, self.quality.gather(1, index)


def relevance_quality(relevance: Tensor, theta: float | None = None) -> Tensor:
    """The quality q of a kernel matrix that stands for relevance.

    Args:
        relevance: (B, N) r, scaled, higher is more relevant.
        theta: in [0, 1) for q = exp(alpha r) with alpha = theta / (2 (1 - theta)), by which the greedy objective
            becomes theta * sum r + (1 - theta) * log det S (0 is a plain DPP); None for q = r.

    Returns:
        (B, N). The exponential is divided by its largest value in a row, which changes no choice and cannot overflow.
    """
    if theta is None:
        return relevance
    alpha = theta / (2 * (1 - theta))
    return (alpha * (relevance - relevance.amax(1, keepdim=True))).exp()
