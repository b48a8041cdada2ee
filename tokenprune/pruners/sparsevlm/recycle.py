"""SparseVLM's recycling: the better part of the dropped tokens goes on as a few merged ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError
from tokenprune.functional.cluster import cluster_means, dpc_knn
from tokenprune.functional.draws import contents, uniform

SHARE = 0.3  # of the dropped tokens is recycled
SIZE = 10  # tokens that become one


def recycled(dropped: int) -> tuple[int, int]:
    """How many of ``dropped`` tokens are recycled, and how many they become."""
    candidates = int(SHARE * dropped) + 1
    return (candidates, candidates // SIZE + 1) if dropped else (0, 0)


def merge_dropped(
    features: Tensor, dropped: Sequence[Tensor], noise: float, seed: int, row_ids: Tensor | None
) -> Tensor:
    """Cluster the best of the dropped tokens of each row, and take the mean of each cluster.

    Args:
        features: (B, N, D).
        dropped: for each row, (n,) long: the tokens dropped, the best first.
        noise: largest noise on the densities of the clustering, which are in (0, 1].
        seed: of the noise.
        row_ids: (B,) long, what the noise depends on besides; None: on the features.

    Returns:
        (B, M, D), in the order of the clusters' centres.

    Raises:
        SelectionError: if the rows differ in M.
    """
    numbers = [recycled(len(tokens)) for tokens in dropped]
    if len({merged for _, merged in numbers}) > 1:
        raise SelectionError("rows that drop different numbers of tokens append different numbers; select them apart")
    rows = contents(features, None, row_ids) if noise else [b""] * len(dropped)
    means = []
    for row, content, tokens, (candidates, merged) in zip(features, rows, dropped, numbers, strict=True):
        points = row[tokens[:candidates]]
        extra = noise * uniform(content, candidates, str(seed)).to(points.device) if noise else None
        means.append(cluster_means(points, dpc_knn(points, merged, extra)[1], merged))
    return torch.stack(means).to(features.dtype)
