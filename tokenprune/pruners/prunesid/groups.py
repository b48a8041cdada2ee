"""Groups of tokens by the principal component in which each is largest."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_groups(x: Tensor, number: int) -> Tensor:
    """The component (B, N) long, 0 for the largest, in which each token has its largest absolute coordinate.

    Components are the first left singular vectors of the tokens' sigmoids, less each token's mean over its channels.
    They are the eigenvectors of the Gram matrix, which is float64, as it squares the singular values.

    Args:
        x: (B, N, D).
        number: of components, at most N.
    """
    squashed = x.double().sigmoid()
    centred = squashed - squashed.mean(2, keepdim=True)
    vectors: Tensor = torch.linalg.eigh(centred @ centred.mT).eigenvectors  # by rising eigenvalue
    return vectors[:, :, -number:].flip(2).abs().argmax(2)
