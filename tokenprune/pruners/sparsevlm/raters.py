"""Text that rates visual tokens by its attention to them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError
from tokenprune.functional.vectors import widen


def text_raters(image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Which text rows relate to the image: those that visual tokens, softmax over the text, weigh above average.

    Args:
        image: (B, M, D) embeddings of visual tokens.
        text: (B, Q, D) embeddings of text rows.
        mask: (B, Q) bool, False for padding.

    Returns:
        (B, Q) bool, never padding. If no row is above average, all are raters.
    """
    logits = widen(image) @ widen(text).mT
    weight = logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1).mean(1)
    above = weight > 1 / mask.sum(1, keepdim=True)
    return torch.where(above.any(1, keepdim=True), above, mask)


def attention_of_raters(
    attention: Tensor, raters: Tensor, similarity: Tensor | None = None, heads: int | None = None
) -> Tensor:
    """Attention of the raters, mean over heads.

    Args:
        attention: (B, H, Q, N) of text rows to visual tokens.
        raters: (B, Q) bool.
        similarity: (B, Q, N) that attention is divided by.
        heads: only so many count, those in which the raters attend to the visual tokens most; all if there are fewer.

    Returns:
        (B, Q, N), widened; 0 in rows that are no raters.
    """
    rated = widen(attention) if similarity is None else widen(attention) / widen(similarity)[:, None]
    rated = rated.masked_fill(~raters[:, None, :, None], 0)
    if heads is None:
        return rated.mean(1)
    best = rated.sum((2, 3)).argsort(dim=1, descending=True, stable=True)[:, :heads]
    return rated.gather(1, best[:, :, None, None].expand(-1, -1, *rated.shape[2:])).mean(1)


def count_by_rank(rated: Tensor, raters: Tensor, scale: float, bias: float) -> int:
    """How many of N visual tokens stay by the rank of the raters' attention: ``int(scale * rank + bias)``, but not all.

    All stay if the rank is N. At least one stays.

    Args:
        rated: (1, Q, N) attention of the raters.
        raters: (1, Q) bool.
        scale: tokens that stay, by rank.
        bias: further tokens that stay.

    Raises:
        SelectionError: if there are several rows, as each would keep a number of its own.
    """
    if len(rated) > 1:
        raise SelectionError(
            f"by rank each row keeps a number of its own; select these {len(rated)} rows one at a time"
        )
    rank, number = int(torch.linalg.matrix_rank(rated[0][raters[0]].float())), rated.shape[2]
    return number if rank == number else max(1, min(int(scale * rank + bias), number - 1))
