"""When each token of a ``generate`` comes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tokenprune.engine.stopwatch import now


class TokenClock(BaseStreamer):  # type: ignore[misc]
    """A streamer that notes the time, once for the prompt and once for each new token of all rows.

    Attributes:
        times: seconds on the clock of ``stopwatch.now``.
    """

    def __init__(self, device: torch.device) -> None:
        self.times: list[float] = []
        self._device = device

    def put(self, value: Tensor) -> None:
        """Note the time when the device has done what came before."""
        self.times.append(now(self._device))

    def end(self) -> None:
        """Do nothing at the end, as nothing is held back."""
