"""Groups of tokens by the principal component in which each is largest."""

from __future__ import annotations

import torch
from scipy.linalg import eigh
from torch import Tensor

from tokenprune.functional.gram import gram


@torch.no_grad()
def principal_groups(x: Tensor, number: int) -> Tensor:
    """The component (B, N) long, 0 for the largest, in which each token has its largest absolute coordinate.

    Components are the first left singular vectors of the tokens' sigmoids, less each token's mean over its channels.
    They come from the eigenvectors of the products of tokens or of channels, whichever are fewer. Arithmetic is
    float64, as products square the singular values.

    Args:
        x: (B, N, D).
        number: of components, at most N.
    """
    return torch.stack([_components(row, number).abs().argmax(1) for row in x])


def _components(x: Tensor, number: int) -> Tensor:
    """The first components (N, number), the largest first, of one row (N, D)."""
    squashed = x.double().sigmoid()
    squashed -= squashed.mean(1, keepdim=True)
    if number >= squashed.shape[1] or len(squashed) <= squashed.shape[1]:
        return _largest(gram(squashed[None])[0], number)
    scaled: Tensor = squashed @ _largest(gram(squashed.T[None])[0], number)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=0)
    return scaled / length.clamp(min=torch.finfo(length.dtype).eps * length.max().clamp(min=1))


def _largest(symmetric: Tensor, number: int) -> Tensor:
    """Eigenvectors (n, number) of the largest eigenvalues, the largest first."""
    n = len(symmetric)
    if symmetric.device.type != "cpu":
        vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors[:, -number:]  # by rising eigenvalue
    else:  # only those that are asked for, which torch cannot
        limits = n - number, n - 1
        vectors = torch.from_numpy(
            eigh(symmetric.numpy(), overwrite_a=True, check_finite=False, subset_by_index=limits)[1]
        )
    return vectors.flip(1)
