"""Reads the official code's outputs in ``tests/golden``."""

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def cases(pattern):
    return sorted(path.stem for path in GOLDEN.glob(f"{pattern}.npz"))


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


def orders(case):
    """(T, order (B, T)) of each size of set."""
    found = {int(key.removeprefix("order_T")): value.long() for key, value in case.items() if key.startswith("order_T")}
    return [(size, order if order.dim() == 2 else order[None]) for size, order in sorted(found.items())]
