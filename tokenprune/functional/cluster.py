"""DPC-KNN: density peak clustering with densities from nearest neighbours, and the mean of each cluster.

A centre is a point of high density that is far from every point of higher density. Of equally dense points the first
counts as the denser: two points that are nearest to each other are equally dense if there are two clusters, and would
both become centres. Densities are logarithms, which do not underflow where points are far apart.
Papers: https://doi.org/10.1126/science.1242072, https://doi.org/10.1016/j.knosys.2016.02.001
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.functional.vectors import widen


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
    distance = _distance(widen(x))
    density = -distance.topk(clusters, largest=False).values.square().mean(1)
    if noise is not None:
        density = torch.logaddexp(density, noise.to(density).log())
    place = density.argsort(descending=True, stable=True).argsort()
    separation = torch.where(place < place[:, None], distance, distance.max()).amin(1)
    centers = (density + separation.log()).argsort(descending=True, stable=True)[:clusters]
    nearest = distance[:, centers].argmin(1)
    nearest[centers] = torch.arange(clusters, device=x.device)
    return centers, nearest


def _distance(points: Tensor) -> Tensor:
    """(n, n) Euclidean distance over sqrt(D), exactly symmetric, so that neighbours are equally far from each other."""
    offsets = points - points.mean(0)  # or products of what is far from the origin would drown the distances
    gram = offsets @ offsets.T
    squares = gram.diagonal() + gram.diagonal()[:, None] - (gram + gram.T)
    return (squares.clamp(min=0) / points.shape[1]).sqrt()


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
