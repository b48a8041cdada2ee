"""DPC-KNN: density peak clustering with densities from nearest neighbours, and the mean of each cluster.

A centre is a point of high density that is far from every point of higher density. Of equally dense points the first
counts as the denser: two points that are nearest to each other are equally dense if there are two clusters, and would
both become centres. Densities are logarithms, which do not underflow where points are far apart.
Papers: https://doi.org/10.1126/science.1242072, https://doi.org/10.1016/j.knosys.2016.02.001
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokenprune.functional.vectors import widen

NUMBERS = 2**24  # distances at a time; those of 4096 points among each other


def dpc_knn(x: Tensor, clusters: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cluster the points of one row.

    Args:
        x: (n, D), n >= 1.
        clusters: how many, between 1 and n; the density of a point is that of as many nearest ones, itself included.
        noise: (n,) added to the densities, which are in (0, 1]; at least 0.

    Returns:
        Centres (clusters,) long, by falling density times distance to the nearest denser point (of the densest: the
        largest distance of all), the lowest index first among equals; and (n,) long, the number of the centre nearest
        to each point. Centres are nearest to themselves.
    """
    points = widen(x)
    blocks = _Distances(points)
    density = torch.cat([-d.topk(clusters, largest=False).values.square().mean(1) for d in blocks])
    if noise is not None:
        density = torch.logaddexp(density, noise.to(density).log())
    place = density.argsort(descending=True, stable=True).argsort()
    separations, largest, first = [], [], 0
    for d in blocks:
        own = place[first : first + len(d), None]
        largest.append(d.max())
        separations.append(torch.where(place < own, d, torch.inf).amin(1))
        first += len(d)
    separation = torch.cat(separations).clamp(max=torch.stack(largest).max())
    centers = (density + separation.log()).argsort(descending=True, stable=True)[:clusters]
    nearest = torch.cat([d[:, centers].argmin(1) for d in blocks])
    nearest[centers] = torch.arange(clusters, device=x.device)
    return centers, nearest


class _Distances:
    """Euclidean distances over sqrt(D) from each point to all, (rows, n) at a time, of about ``NUMBERS`` numbers.

    Where one block is all, distances are exactly symmetric, so that neighbours are equally far from each other.
    """

    def __init__(self, points: Tensor) -> None:
        self.offsets = points - points.mean(0)  # or products of what is far from the origin would drown the distances
        self.rows = max(1, NUMBERS // len(points))
        self.whole = self._all() if self.rows >= len(points) else None

    def __iter__(self) -> Iterator[Tensor]:
        if self.whole is not None:
            yield self.whole
            return
        norms = self.offsets.square().sum(1)
        for first in range(0, len(norms), self.rows):
            rows = slice(first, first + self.rows)
            squares = norms[rows, None] + norms - 2 * (self.offsets[rows] @ self.offsets.T)
            squares[:, rows].fill_diagonal_(0)
            yield self._root(squares)

    def _all(self) -> Tensor:
        gram = self.offsets @ self.offsets.T
        return self._root(gram.diagonal() + gram.diagonal()[:, None] - (gram + gram.T))

    def _root(self, squares: Tensor) -> Tensor:
        return (squares.clamp(min=0) / self.offsets.shape[1]).sqrt()


def cluster_means(x: Tensor, cluster: Tensor, clusters: int) -> Tensor:
    """Mean of the points of each cluster.

    Args:
        x: (n, D).
        cluster: (n,) long, which cluster each point belongs to; none is empty.
        clusters: how many.

    Returns:
        (clusters, D), widened.
    """
    member = (cluster == torch.arange(clusters, device=x.device)[:, None]).to(widen(x).dtype)
    return member @ widen(x) / member.sum(1, keepdim=True)
