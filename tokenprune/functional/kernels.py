"""Similarity kernels, all positive semi-definite, and the kernel matrix that relevance conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.functional.vectors import take, unit, widen


class Kernel(ABC):
    """A similarity of tokens, computed a block at a time so that no caller needs the N x N matrix.

    The first line of a kernel's docstring is its formula, for listings.

    Attributes:
        radial: whether it depends on differences over a bandwidth s alone.
    """

    radial: ClassVar[bool] = False

    @abstractmethod
    def points(self, features: Tensor, valid: Tensor) -> Tensor:
        """What ``block`` works on: features (B, N, D), prepared once; (B, N) ``valid`` tokens set the bandwidth."""

    @abstractmethod
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """Kernel values (B, n, m) between points (B, n, D) and (B, m, D)."""

    def diagonal(self, points: Tensor) -> Tensor:
        """Kernel values (B, N) of points with themselves."""
        return points.new_ones(points.shape[:-1])


class Linear(Kernel):
    """<x, y>."""

    def points(self, features: Tensor, valid: Tensor) -> Tensor:  # noqa: D102
        return widen(features)

    def block(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return x @ y.mT

    def diagonal(self, points: Tensor) -> Tensor:  # noqa: D102
        return torch.einsum("...d,...d->...", points, points)


class Cosine(Linear):
    """cos(x, y)."""

    def points(self, features: Tensor, valid: Tensor) -> Tensor:  # noqa: D102
        return unit(features)

    def diagonal(self, points: Tensor) -> Tensor:  # noqa: D102
        squares = super().diagonal(points)
        rounding = (squares - 1).abs() < 16 * torch.finfo(squares.dtype).eps  # more than that comes of half precision
        return squares.masked_fill(rounding, 1)


class Polynomial(Cosine):
    """((1 + cos(x, y)) / 2)^2."""

    def block(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return (0.5 + 0.5 * super().block(x, y)).square()

    def diagonal(self, points: Tensor) -> Tensor:  # noqa: D102
        return (0.5 + 0.5 * super().diagonal(points)).square()


class RBF(Kernel):
    """exp(-|x - y|^2 / (2 s^2)), s^2 = mean squared distance to the centroid.

    The mean of |x - y|^2 over all pairs is 2 s^2, so the exponent is -1 on average, and the bandwidth costs O(N D).
    """

    radial = True

    def points(self, features: Tensor, valid: Tensor) -> Tensor:  # noqa: D102
        offsets = _from_centroid(features, valid)
        return offsets / _bandwidth(offsets.square().sum(-1), valid).sqrt()

    def block(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        squares = 0.5 * (x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :])
        return (x @ y.mT - squares).clamp(max=0).exp()


class Laplacian(Kernel):
    """exp(-|x - y|_1 / s), s = mean L1 distance to the centroid."""

    radial = True

    def points(self, features: Tensor, valid: Tensor) -> Tensor:  # noqa: D102
        offsets = _from_centroid(features, valid)
        return offsets / _bandwidth(offsets.abs().sum(-1), valid)

    def block(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return torch.cdist(x, y, p=1).neg().exp()


def _from_centroid(features: Tensor, valid: Tensor) -> Tensor:
    """(B, N, D) offsets from the mean of the row's valid tokens."""
    x, weight = widen(features), valid[..., None]
    return x - (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def _bandwidth(distances: Tensor, valid: Tensor) -> Tensor:
    """(B, 1, 1) mean of (B, N) distances over the valid tokens; positive also if all of them coincide."""
    mean = (distances * valid).sum(1) / valid.sum(1)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny)[:, None, None]


KERNELS: dict[str, Kernel] = {
    "cosine": Cosine(),
    "linear": Linear(),
    "rbf": RBF(),
    "polynomial": Polynomial(),
    "laplacian": Laplacian(),
}


@dataclass(frozen=True, eq=False)
class KernelMatrix:
    """The matrices L = diag(q) S diag(q), one a row, that a kernel S and a quality q of each token make.

    log det L_A = sum over A of log q^2 + log det S_A, so the quality weighs relevance against diversity.

    Attributes:
        kernel: S.
        points: (B, N, D) what the kernel works on.
        quality: (B, N) q, not negative.
    """

    kernel: Kernel
    points: Tensor
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
        """The matrix of features.

        Args:
            features: (B, N, D).
            kernel: a key of ``KERNELS``.
            quality: (B, N); None is 1 everywhere.
            valid: (B, N) bool, False for padding.
            bandwidth: factor of s in a radial kernel; others have 1.
        """
        valid = features.new_ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
        points = KERNELS[kernel].points(features, valid) / bandwidth
        ones = points.new_ones(points.shape[:2])
        return cls(KERNELS[kernel], points, ones if quality is None else quality.to(ones))

    def diagonal(self) -> Tensor:
        """(B, N)."""
        return self.quality * self.kernel.diagonal(self.points) * self.quality

    def block(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Entries (B, n, m) at token indices (B, n) and (B, m); all columns if None."""
        y, q = (
            (self.points, self.quality)
            if columns is None
            else (take(self.points, columns), self.quality.gather(1, columns))
        )
        block = self.kernel.block(take(self.points, rows), y)
        return block.mul_(self.quality.gather(1, rows)[:, :, None]).mul_(q[:, None, :])


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
