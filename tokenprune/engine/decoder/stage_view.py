"""The LLM at a stage, as providers of signals see it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import ScoringLayer, TextRows
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.tap import Attended
from tokenprune.functional.vectors import of_rows


@dataclass(frozen=True, eq=False)
class StageView:
    """The LLM at a stage.

    Attributes:
        alive: tokens at the stage.
        prompt: tokens at the first layer.
        hidden: (B, n, D) at the input of the stage's layer.
        embeds: (B, L, D) at the input of the first layer.
        attended: by each scoring layer that a signal needs, whose tokens are those at the stage.
        rotation: cosines and sines, each (B or 1, n, d), of the tokens at the stage; on any device.
        norm: the LLM's final norm, on any device.
        columns: of the prompt; what comes after them was generated and has no say.
    """

    alive: Alive
    prompt: Alive
    hidden: Tensor
    embeds: Tensor
    attended: Mapping[ScoringLayer, Attended]
    rotation: tuple[Tensor, Tensor]
    norm: Callable[[Tensor], Tensor]
    columns: int

    def text(self, batch: Tensor, rows: TextRows) -> tuple[Tensor, Tensor]:
        """The text that follows the last visual token.

        Args:
            batch: (G,) long, rows of the batch.
            rows: all of it, or the last token alone.

        Returns:
            (G, Q) long indices among the tokens at the stage, and (G, Q) bool, False for padding, which comes first.

        Raises:
            ModelError: if no text follows.
        """
        alive = self.alive
        slots, visual = of_rows(alive.slots, batch), of_rows(alive.visual, batch)
        image = visual | (of_rows(alive.number, batch) >= 0)
        last = torch.where(image, slots, -1).amax(1, keepdim=True)
        is_text = of_rows(alive.valid, batch) & ~image & (slots > last) & (slots < self.columns)
        if not bool(is_text.any(1).all()):
            raise ModelError(
                "the prompt ends with its image; a pruner that reads the text after it has nothing to read"
            )
        number = int(is_text.sum(1).max()) if rows == "all" else 1
        order = is_text.long().argsort(dim=1, stable=True)[:, -number:]
        return order, is_text.gather(1, order)


@dataclass(frozen=True, eq=False)
class StageRows:
    """Some rows of a stage, which have equal numbers of visual tokens.

    Attributes:
        view: the stage.
        batch: (G,) long, rows of the batch, ascending.
        visual: (G, N) long, their visual tokens among the tokens at the stage.
    """

    view: StageView
    batch: Tensor
    visual: Tensor

    @functools.cached_property
    def hidden(self) -> Tensor:
        """Hidden states (G, n, D) at the input of the stage's layer."""
        return of_rows(self.view.hidden, self.batch)

    def text(self, rows: TextRows) -> tuple[Tensor, Tensor]:
        """Text rows (G, Q) long, among the tokens at the stage, and (G, Q) bool, False for padding."""
        return self.view.text(self.batch, rows)
