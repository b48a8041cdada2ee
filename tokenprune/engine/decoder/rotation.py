"""Position embeddings of other positions than those that the LLM computed in its forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenprune.core.errors import ModelError

Pair = tuple[Tensor, Tensor]


class Rotations:
    """The calls of a decoder's ``rotary_emb`` in one forward.

    Args:
        module: the ``rotary_emb``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[dict[str, Any], Pair]] = []

    def note(self, arguments: dict[str, Any], output: Pair) -> None:
        """Remember a call; decoders whose layers rotate differently make several."""
        self.calls.append((arguments, output))

    @property
    def positions(self) -> Tensor:
        """Position ids (B or 1, L) of the forward.

        Raises:
            ModelError: if they have several axes, as M-RoPE's have.
        """
        positions: Tensor = self.calls[-1][0]["position_ids"]
        if positions.dim() != 2:
            raise ModelError(
                "this model's position ids have several axes, so that gaps in them cannot be closed; use a pruner with "
                "positions='original' inside the LLM"
            )
        return positions

    def at(self, positions: Tensor, given: Pair) -> Pair:
        """Cosines and sines of other positions.

        Args:
            positions: (B, n) long.
            given: what a layer was given; tells which call to repeat.
        """
        same = [arguments for arguments, output in self.calls if output[0] is given[0]]
        arguments = same[0] if same else self.calls[-1][0]
        # Not through __call__: hooks should see the forward's own calls alone.
        cos, sin = self.module.forward(**{**arguments, "position_ids": positions})
        return cos.to(given[0].device), sin.to(given[1].device)
