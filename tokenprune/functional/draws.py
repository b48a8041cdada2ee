"""Random numbers that a row draws in any batch as it draws them alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def contents(features: Tensor, valid: Tensor | None, row_ids: Tensor | None) -> list[bytes]:
    """Bytes that stand for each row: its id, or its valid features if it has none.

    Args:
        features: (B, N, D).
        valid: (B, N) bool, False for padding; None if there is none.
        row_ids: (B,) long, or None.
    """
    if row_ids is not None:
        return [str(number).encode() for number in row_ids.tolist()]
    rows = features.detach().float().cpu()
    if valid is None:
        return [row.numpy().tobytes() for row in rows]
    return [row[counts].numpy().tobytes() for row, counts in zip(rows, valid.cpu(), strict=True)]


def uniform(content: bytes, number: int, key: str) -> Tensor:
    """Random numbers that are uniform in [0, 1), by a row's content and a key alone.

    Args:
        content: bytes that stand for the row.
        number: how many numbers.
        key: at most 64 bytes; another key draws other numbers.

    Returns:
        (number,) float32, on the CPU.
    """
    digest = hashlib.blake2b(content, key=key.encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(number, generator=generator, dtype=torch.float32, device="cpu")
