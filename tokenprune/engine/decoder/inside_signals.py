"""What a pruner may ask for at a stage inside the LLM: attention, keys, hidden states and input embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.precision import exact
from tokenprune.core.signals import Signal
from tokenprune.core.steps import TextRows
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.tap import Attended
from tokenprune.functional.vectors import of_rows, take, widen


@dataclass(frozen=True, eq=False)
class StageView:
    """The LLM at a stage.

    Attributes:
        alive: tokens at the stage.
        prompt: tokens at the first layer.
        hidden: (B, n, D) at the input of the stage's layer.
        embeds: (B, L, D) at the input of the first layer.
        attended: by the scoring layer, whose tokens are those at the stage; None if no signal needs it.
        rotation: cosines and sines, each (B or 1, n, d), of the tokens at the stage; on any device.
        norm: the LLM's final norm, on any device.
        columns: of the prompt; what comes after them was generated and has no say.
    """

    alive: Alive
    prompt: Alive
    hidden: Tensor
    embeds: Tensor
    attended: Attended | None
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


def stage_signals(
    view: StageView, requires: frozenset[Signal], batch: Tensor, visual: Tensor, rows: TextRows
) -> dict[str, Tensor]:
    """Compute the required signals of some rows.

    Args:
        view: the LLM at the stage.
        requires: signals to compute; nothing else is.
        batch: (G,) long, rows of the batch, ascending.
        visual: (G, N) long, their visual tokens among the tokens at the stage.
        rows: which text the text signals are of.
    """
    index, mask = view.text(batch, rows) if requires - {Signal.KEYS, Signal.NORMED_HIDDEN} else (visual, visual)
    hidden, attended = of_rows(view.hidden, batch), view.attended
    makers: dict[Signal, Callable[[], Tensor]] = {
        Signal.TEXT_MASK: lambda: mask,
        Signal.TEXT_ATTENTION: lambda: _attention(view, batch, visual, index),
        Signal.ROPE_SIMILARITY: lambda: _rope_similarity(view, batch, visual, index),
        Signal.KEYS: lambda: take(_flat_keys(attended, batch), visual),
        Signal.TEXT_KEYS: lambda: take(_flat_keys(attended, batch), index),
        Signal.NORMED_HIDDEN: lambda: view.norm(take(hidden, visual)).to(hidden.device),
        Signal.TEXT_NORMED_HIDDEN: lambda: view.norm(take(hidden, index)).to(hidden.device),
        Signal.TEXT_EMBEDS: lambda: take(
            of_rows(view.embeds, batch), of_rows(view.alive.slots, batch).gather(1, index)
        ),
        Signal.IMAGE_EMBEDS: lambda: _image_embeds(view, batch),
    }
    return {name: makers[name]() for name in requires}


def _attention(view: StageView, batch: Tensor, visual: Tensor, rows: Tensor) -> Tensor:
    assert view.attended is not None
    weights = view.attended.probabilities(rows, of_rows(view.alive.valid, batch), batch)
    return weights.gather(3, visual[:, None, None].expand(-1, *weights.shape[1:3], -1))


def _flat_keys(attended: Attended | None, batch: Tensor) -> Tensor:
    assert attended is not None
    return of_rows(attended.key[:, :, : attended.query.shape[2]], batch).transpose(1, 2).flatten(2)


def _image_embeds(view: StageView, batch: Tensor) -> Tensor:
    visual = of_rows(view.prompt.visual, batch).nonzero()[:, 1].view(len(batch), -1)
    return take(of_rows(view.embeds, batch), visual)


def _rope_similarity(view: StageView, batch: Tensor, visual: Tensor, rows: Tensor) -> Tensor:
    """(G, Q, N): what rotation alone does to a score; queries and keys that are all ones would score this."""
    assert view.attended is not None
    whole = (x.to(batch.device).expand(len(view.hidden), -1, -1) for x in view.rotation)
    cos, sin = (widen(of_rows(x, batch)) for x in whole)
    half = cos.shape[-1] // 2
    ones = cos + sin * torch.cat([-sin.new_ones(half), sin.new_ones(half)])
    with exact(ones.device):
        return take(ones, rows) @ take(ones, visual).mT * view.attended.scaling
