"""Which tokens of a prompt a decoder layer still sees, and everything aligned with them."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.functional.vectors import take


@dataclass(frozen=True, eq=False)
class Alive:
    """The tokens at the input of a layer, n a row; rows with fewer are padded.

    Attributes:
        slots: (B, n) long, ascending: each token's column in the prompt; an appended token has that of the last visual
            token before it.
        valid: (B, n) bool, False for padding.
        visual: (B, n) bool, appended tokens included, padding not.
        number: (B, n) long, which visual token of its row each is; -1 for appended tokens and text.
        closed: (B, n) long: so much smaller than that of its column in the prompt is a token's position id; None if all
            have that of their column.
        shift: (B,) long, the same for what follows the prompt.
        right: rows are padded on the right.
        appended: whether there are appended tokens.
        bias: (B, n), what is added to the attention logits of each token as a key, 0 for text; None if nothing is.
        labels: (B, n) long, what an earlier stage handed on about each token, -1 if nothing; None if no stage did.
        copies: rows of each prompt: its key-value heads, side by side, in a cache whose heads hold different tokens;
            else 1.
        memo: what depends on these tokens and on nothing else.
    """

    slots: Tensor
    valid: Tensor
    visual: Tensor
    number: Tensor
    closed: Tensor | None
    shift: Tensor
    right: bool
    appended: bool = False
    bias: Tensor | None = None
    labels: Tensor | None = None
    copies: int = 1
    memo: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def prompt(
        cls,
        valid: Tensor,
        visual: Tensor,
        number: Tensor,
        *,
        bias: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Alive:
        """All tokens of a prompt.

        Args:
            valid: (B, L) bool, False for padding.
            visual: (B, L) bool.
            number: (B, L) long, see the attributes.
            bias: (B, L), see the attributes.
            labels: (B, L) long, see the attributes.
        """
        batch, length = valid.shape
        slots = torch.arange(length, device=valid.device).expand(batch, -1)
        right = bool(valid[:, 0].all()) and not bool(valid[:, -1].all())
        shift = slots.new_zeros(batch)
        return cls(slots, valid, visual & valid, number, None, shift, right, bias=bias, labels=labels)

    def to(self, device: torch.device) -> Alive:
        """These tokens on another device."""
        if self.slots.device == device:
            return self
        moved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        return Alive(**{**moved, "memo": {}})

    def first(self, n: int) -> Alive:
        """The first n tokens of each row."""
        if n == self.slots.shape[1]:
            return self
        names = ("slots", "valid", "visual", "number", "closed", "bias", "labels")
        cut = {name: x[:, :n] for name in names if (x := getattr(self, name)) is not None}
        return dataclasses.replace(self, **cut, memo={})

    def keep(self, stay: Tensor, appended: Tensor, *, repack: bool) -> tuple[Alive, Tensor]:
        """Drop tokens, append others after the last visual token of each row, and pad the rows anew.

        Args:
            stay: (B, n) bool.
            appended: (B, M) bool, False for what fills up rows that append fewer.
            repack: close the gaps in the position ids.

        Returns:
            What is alive then, n' tokens a row, and (B, n') long: the index that each had, where appended ones count
            on from n, and padding has any.
        """
        tokens, extra = stay.shape[1], appended.shape[1]
        anchor = torch.where(self.visual, self.slots, -1).argmax(1, keepdim=True)
        own = torch.arange(tokens, device=stay.device).expand_as(stay)
        source = torch.cat([own, anchor.expand(-1, extra)], 1)
        there = torch.cat([stay & self.valid, appended], 1)
        key = 2 * self.slots.gather(1, source)
        key[:, tokens:] += 1
        padding = 2 * key.max() + 2 if self.right else -1
        order = torch.where(there, key, padding).argsort(dim=1, stable=True)
        length = int(there.sum(1).max())
        order = order[:, :length] if self.right else order[:, order.shape[1] - length :]
        index, valid, new = source.gather(1, order), there.gather(1, order), order >= tokens
        closed, shift = None if self.closed is None else self.closed.gather(1, index), self.shift
        if repack:
            rank, ranked = self.valid.long().cumsum(1), valid.long().cumsum(1)
            closed = (0 if closed is None else closed) + rank.gather(1, index) - ranked
            shift = shift + rank[:, -1] - ranked[:, -1]
        after = Alive(
            slots=self.slots.gather(1, index),
            valid=valid,
            visual=(self.visual.gather(1, index) | new) & valid,
            number=self.number.gather(1, index).masked_fill(new, -1),
            closed=closed,
            shift=shift,
            right=self.right,
            appended=self.appended or extra > 0,
            bias=None if self.bias is None else self.bias.gather(1, index).masked_fill(new | ~valid, 0),
            labels=None if self.labels is None else self.labels.gather(1, index).masked_fill(new | ~valid, -1),
            copies=self.copies,
        )
        return after, order

    def by_head(self, heads: int) -> Alive:
        """These tokens with a row for each key-value head of a prompt, (B * heads, n)."""
        names = ("slots", "valid", "visual", "number", "closed", "shift", "bias", "labels")
        rows = {name: x.repeat_interleave(heads, 0) for name in names if (x := getattr(self, name)) is not None}
        return dataclasses.replace(self, **rows, copies=heads, memo={})

    def masked(self, stay: Tensor) -> Alive:
        """The tokens with all but those that ``stay``, (B, n) bool, as padding, each where it was."""
        valid = self.valid & stay
        return dataclasses.replace(self, valid=valid, visual=self.visual & valid, memo={})

    def gather(self, x: Tensor) -> Tensor:
        """Take (B or 1, L, D) of the prompt's columns to (B, n, D) of the tokens, on their device."""
        x = x.to(self.slots.device)  # what all layers share may be on another GPU than this one's
        return x[0][self.slots] if len(x) == 1 else take(x, self.slots)

    def positions(self, whole: Tensor) -> Tensor:
        """Position ids (B, n) of the tokens, from the prompt's (B or 1, L) on any device; padding has 0."""
        own = whole.to(self.slots.device).expand(len(self.slots), -1).gather(1, self.slots)
        return (own if self.closed is None else own - self.closed).masked_fill(~self.valid, 0)

    def spread(self, x: Tensor, length: int) -> Tensor:
        """Take (B, n, D) of the tokens to (B, length, D) of the prompt's columns.

        A column whose token is gone gets what the last one before it has: that is what follows it in the text.
        """
        index = torch.arange(x.shape[1], device=x.device).expand_as(self.slots)
        own = self.valid & ~(self.visual & (self.number < 0))
        seat = torch.full((len(x), length + 1), -1, device=x.device)
        seat.scatter_(1, self.slots.masked_fill(~own, length), index)
        return take(x, seat[:, :length].cummax(1).values.clamp(min=0))

    @property
    def kept(self) -> list[list[int]]:
        """Numbers of each prompt's visual tokens that are alive, ascending, without appended ones.

        Where heads hold different tokens, those that any of them holds.
        """
        real = self.visual & (self.number >= 0)
        rows = [set(row[there].tolist()) for row, there in zip(self.number, real, strict=True)]
        return [sorted(set().union(*rows[at : at + self.copies])) for at in range(0, len(rows), self.copies)]

    @functools.cached_property
    def counts(self) -> list[int]:
        """Visual tokens of each prompt, appended ones included; where heads hold different numbers, their mean."""
        counts = self.visual.sum(1).view(-1, self.copies).float().mean(1).round()
        numbers: list[int] = counts.long().tolist()
        return numbers

    @functools.cached_property
    def padded(self) -> bool:
        """Whether any row is padded."""
        return not bool(self.valid.all())
