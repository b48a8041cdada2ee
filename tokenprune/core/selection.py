"""What a pruner decides at one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """What a pruner decides at one stage. Unsorted or repeated indices cannot be expressed.

    Attributes:
        keep: (B, K) long, strictly increasing in each row; where rows keep different numbers, padded with -1. K is 0 if
            nothing stays.
        num_tokens: N, visual tokens before; K = N is the identity.
        scores: (B, N), higher stays, of methods that score.
        order: (B, K) long, the same indices in the order in which a greedy method picked them.
        into: (B, N) long, the kept token that each is folded into, by its own index; -1 for those that are lost. Kept
            tokens are folded into themselves.
        weight: (B, N) at least 0, what a token counts in the mean that it is folded into; None: all count alike.
        merged: (B, K + M, D) new features of the kept tokens, of methods that make them otherwise than by folding,
            followed by those of M tokens that the method appends, in their order.
        sequence: (B, K) long, the kept indices in the order in which they enter the prompt; None: ascending. Where
            tokens keep their own position ids, they enter in ascending order all the same.
        bias: (B, K) finite, what later layers add to the attention logits of the kept tokens as keys, in the prefill
            and in decoding, such as the logarithm of how many tokens each stands for; None: nothing.
        labels: (B, K) long, what the method hands on about the kept tokens to later stages, which find it in
            ``VisualTokens.labels``; -1 says nothing.
        heads: (B, G, N) bool, which tokens each of the G key-value heads keeps, at a stage in a cache; ``keep`` holds
            those that any of them keeps. None: all heads keep ``keep``.

    Raises:
        SelectionError: if ``keep`` is out of range or not strictly increasing, or shapes disagree.
    """

    keep: Tensor
    num_tokens: int
    scores: Tensor | None = None
    order: Tensor | None = None
    merged: Tensor | None = None
    into: Tensor | None = None
    weight: Tensor | None = None
    sequence: Tensor | None = None
    bias: Tensor | None = None
    labels: Tensor | None = None
    heads: Tensor | None = None

    def __post_init__(self) -> None:
        keep, n = self.keep, self.num_tokens
        if keep.dim() != 2 or keep.dtype != torch.long or len(keep) == 0:
            raise SelectionError(
                f"keep must be a (B, K) long tensor of some rows, got {tuple(keep.shape)} {keep.dtype}"
            )
        if not _fills(keep, n):
            self._check_padded()
        if self.scores is not None and self.scores.shape != (len(keep), n):
            raise SelectionError(f"scores must be {(len(keep), n)}, got {tuple(self.scores.shape)}")
        for name, indices in (("order", self.order), ("sequence", self.sequence)):
            if indices is not None and not torch.equal(_ascending(indices, n), keep):
                raise SelectionError(f"{name} must hold the kept indices")
        if self.merged is not None and (len(self.merged) != len(keep) or self.merged.shape[1] < keep.shape[1]):
            raise SelectionError(
                f"merged must be (B, K or more, D) with (B, K) = {tuple(keep.shape)}, got {tuple(self.merged.shape)}"
            )
        self._check_handed_on()
        self._check_folding()

    def _check_padded(self) -> None:
        keep, n, there = self.keep, self.num_tokens, self.there
        increasing = (keep[:, 1:] > keep[:, :-1]) | ~there[:, 1:]
        if not bool((there[:, :-1] | ~there[:, 1:]).all()) or not bool((increasing & (keep[:, 1:] >= -1)).all()):
            raise SelectionError(f"keep must be strictly increasing within [0, {n}), with any -1 at the end")
        if bool((keep >= n).any()) or bool((keep < -1).any()):
            raise SelectionError(f"keep must be strictly increasing within [0, {n})")

    def _check_handed_on(self) -> None:
        for name, value in (("bias", self.bias), ("labels", self.labels)):
            if value is not None and value.shape != self.keep.shape:
                raise SelectionError(f"{name} must be {tuple(self.keep.shape)}, got {tuple(value.shape)}")
        if self.bias is not None and not bool(self.bias.isfinite().all()):
            raise SelectionError("bias must be finite; a token that nobody should see is not kept")
        if self.labels is not None and self.labels.dtype != torch.long:
            raise SelectionError(f"labels must be long, got {self.labels.dtype}")
        if self.heads is not None and not torch.equal(self.heads.any(1), self.kept):
            raise SelectionError("heads must be (B, G, N) bool, and keep what any of them keeps")

    def _check_folding(self) -> None:
        if self.into is None:
            if self.weight is not None:
                raise SelectionError("weight says what tokens count in a fold, so it needs into")
            return
        shape = (len(self.keep), self.num_tokens)
        if self.into.shape != shape or self.into.dtype != torch.long:
            raise SelectionError(f"into must be a long {shape} tensor, got {tuple(self.into.shape)} {self.into.dtype}")
        if self.weight is not None and (self.weight.shape != shape or not bool((self.weight >= 0).all())):
            raise SelectionError(f"weight must be {shape} and at least 0, got {tuple(self.weight.shape)}")
        if self.merged is not None:
            raise SelectionError("into says how features are folded, so there can be no merged ones")
        kept, target = self.kept, self.into.clamp(min=0)
        if int(self.into.max()) >= self.num_tokens or not bool((kept.gather(1, target) | (self.into < 0)).all()):
            raise SelectionError("into must name kept tokens, or be -1")
        own = torch.arange(self.num_tokens, device=kept.device)
        if not bool(((self.into == own) | ~kept).all()):
            raise SelectionError("into must fold kept tokens into themselves")

    @classmethod
    def from_order(cls, order: Tensor, num_tokens: int, scores: Tensor | None = None) -> TokenSelection:
        """The selection of a greedy method from its picks, (B, K) in the order in which they were made."""
        return cls(order.sort(1).values, num_tokens, scores=scores, order=order)

    @classmethod
    def from_mask(cls, kept: Tensor, scores: Tensor | None = None) -> TokenSelection:
        """The selection of what a (B, N) bool mask says; rows may keep different numbers."""
        least, most = (int(count) for count in kept.sum(1).aminmax())
        if least == most:
            return cls(kept.nonzero()[:, 1].view(len(kept), most), kept.shape[1], scores=scores)
        first = (~kept).long().argsort(dim=1, stable=True)[:, :most]
        return cls(first.masked_fill(~kept.gather(1, first), -1), kept.shape[1], scores=scores)

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor], num_tokens: int) -> TokenSelection:
        """The selection that keeps the given indices of each row, (k,) long and ascending; k may differ."""
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1)
        return cls(padded, num_tokens)

    @classmethod
    def from_heads(cls, heads: Tensor) -> TokenSelection:
        """The selection in which each key-value head keeps what a (B, G, N) bool mask says; numbers may differ."""
        return replace(cls.from_mask(heads.any(1)), heads=heads)

    @property
    def there(self) -> Tensor:
        """Which places of ``keep`` hold a token, (B, K) bool; False for padding."""
        return self.keep >= 0

    @property
    def kept(self) -> Tensor:
        """Which tokens stay, (B, N) bool."""
        mask = torch.zeros(len(self.keep), self.num_tokens + 1, dtype=torch.bool, device=self.keep.device)
        return mask.scatter_(1, self.keep.masked_fill(~self.there, self.num_tokens), True)[:, : self.num_tokens]

    def apply(self, x: Tensor) -> Tensor:
        """What the kept tokens have of something that each token has, such as its features.

        Where the selection folds tokens, a kept one gets the weighted mean of all that were folded into it.

        Args:
            x: (B, N, ...).

        Returns:
            (B, K, ...) in the dtype of ``x``; 0 for padding.
        """
        index, shape = self.keep.clamp(min=0), (*self.keep.shape, *x.shape[2:])
        there = self.there.view(*self.keep.shape, *[1] * (x.dim() - 2))
        if self.into is None:
            return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(shape)).masked_fill(~there, 0)
        slot = torch.full((len(index), self.num_tokens + 1), self.keep.shape[1], device=index.device)
        place = torch.arange(self.keep.shape[1], device=index.device).expand_as(index)
        slot.scatter_(1, self.keep.masked_fill(~self.there, self.num_tokens), place)
        target = slot.gather(1, self.into.clamp(min=0)).masked_fill(self.into < 0, self.keep.shape[1])
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = x.new_ones(target.shape, dtype=wide) if self.weight is None else self.weight.to(wide)
        flat = x.flatten(2).to(wide) if x.dim() > 2 else x[..., None].to(wide)
        sums = flat.new_zeros(len(flat), self.keep.shape[1] + 1, flat.shape[2])
        counted = flat if self.weight is None else flat * weight[..., None]
        slots = target + torch.arange(len(flat), device=target.device)[:, None] * sums.shape[1]
        sums.flatten(0, 1).index_add_(0, slots.flatten(), counted.flatten(0, 1))
        total = weight.new_zeros(len(flat), self.keep.shape[1] + 1).scatter_add_(1, target, weight)
        mean = (sums / total.clamp(min=torch.finfo(wide).tiny)[..., None])[:, :-1].to(x.dtype).reshape(shape)
        return mean if bool(there.all()) else mean.masked_fill(~there, 0)

    def without_features(self) -> TokenSelection:
        """The selection without ``merged``, the features that the method made."""
        return self if self.merged is None else replace(self, merged=None)


def _fills(keep: Tensor, num_tokens: int) -> bool:
    """Whether rows of indices are strictly increasing and without padding, as nearly all are."""
    if keep.shape[1] == 0 or not bool((keep[:, 1:] > keep[:, :-1]).all()):
        return False
    return int(keep[:, 0].min()) >= 0 and int(keep[:, -1].max()) < num_tokens


def _ascending(indices: Tensor, num_tokens: int) -> Tensor:
    """Rows of indices sorted, with -1 at the end."""
    high = indices.masked_fill(indices < 0, num_tokens).sort(1).values
    return high.masked_fill(high == num_tokens, -1)
