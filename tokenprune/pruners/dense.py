"""The base class of methods that look at a row as a whole: they see rows of equal lengths, without padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import KINDS, Signal, parse
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import Pruner


class DensePruner(Pruner):
    """A pruner that chooses among tokens all of which are valid, fewer than all of them."""

    @abstractmethod
    def _choose(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """The method itself, of rows without padding, of one row if it is adaptive.

        k is at least 1, and unless the method is adaptive, fewer than there are patches.
        """

    def _select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        if tokens.valid is None and not self.adaptive:
            return self._unless_all(tokens, k)
        valid, parts = tokens.valid_or_all, []
        for rows in self._groups(valid):
            index = valid[rows].nonzero()[:, 1].view(len(rows), -1)
            parts.append((rows, index, self._unless_all(_without_padding(tokens, rows, index), k)))
        return _together(tokens, parts)

    def _groups(self, valid: Tensor) -> list[Tensor]:
        """Rows that are chosen among at once: of equal lengths, or one by one if their content says how many stay."""
        if self.adaptive:
            return list(torch.arange(len(valid), device=valid.device).tensor_split(len(valid)))
        counts = valid.sum(1)
        return [(counts == count).nonzero()[:, 0] for count in sorted(set(counts.tolist()))]

    def _unless_all(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """What the method chooses, or the identity if all patches can stay; CLS then has no place in the prompt.

        Where the content decides how many stay, the method chooses in any case.
        """
        n, patches = tokens.num_tokens, patches_of(tokens).nonzero()[:, 0]
        if self.adaptive or k not in (n, len(patches)):
            return self._choose(tokens, k)
        everything = torch.arange(n, device=patches.device)
        return TokenSelection((everything if k == n else patches).repeat(tokens.batch_size, 1), n)


def patches_of(tokens: VisualTokens) -> Tensor:
    """Which tokens are made of patches, (N,) bool; CLS is not."""
    if tokens.special is not None:
        return ~tokens.special.to(tokens.features.device)
    return torch.ones(tokens.num_tokens, dtype=torch.bool, device=tokens.features.device)


def at_patches(tokens: VisualTokens, x: Tensor) -> Tensor:
    """What (B, P, ...) of something (B, N, ...) is at patches; not a copy if all tokens are."""
    return x if tokens.special is None else x[:, patches_of(tokens)]


def _without_padding(tokens: VisualTokens, rows: Tensor, index: Tensor) -> VisualTokens:
    """Some tokens (G, n) of each of some rows (G,)."""

    def cut(name: str, value: Tensor) -> Tensor:
        axes = _kind(name).shape.split()
        if "tokens" not in axes:
            return value[rows]
        moved = value[rows].movedim(1 + axes.index("tokens"), 1)
        return _gather(moved, index).movedim(1, 1 + axes.index("tokens"))

    whole = index.shape[1] == tokens.num_tokens
    return VisualTokens(
        _gather(tokens.features[rows], index),
        {name: cut(name, value) for name, value in tokens.signals.items()},
        grid=tokens.grid if whole else None,
        row_ids=None if (ids := tokens.content_ids()) is None else ids[rows],
        place=tokens.place if whole else None,
        segment=tokens.segment if whole else None,
        special=tokens.special if whole else None,
    )


def _kind(name: str) -> Signal | type[Signal]:
    """A signal, or its class if only the plain name is given."""
    signal = parse(name)
    return signal if isinstance(signal, Signal) else next(each for each in KINDS.values() if name in each.plain_names)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Entries (G, n, ...) of ``x`` (G, N, ...) at (G, n)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


Part = tuple[Tensor, Tensor, TokenSelection]  # rows, which of their tokens are valid, and what was chosen of these


def _together(tokens: VisualTokens, parts: Sequence[Part]) -> TokenSelection:
    """One selection of all rows.

    Args:
        tokens: all rows.
        parts: some rows each, with what was chosen of them; numbers may differ.
    """
    chosen = [selection for _, _, selection in parts]

    def joined(width: int, each: Callable[[Part], Tensor]) -> Tensor:
        values = [each(part) for part in parts]
        out = values[0].new_full((tokens.batch_size, width, *values[0].shape[2:]), -1)
        for (rows, _, _), value in zip(parts, values, strict=True):
            out[rows, : value.shape[1]] = value
        return out

    def original(index: Tensor, picks: Tensor) -> Tensor:
        return index.gather(1, picks.clamp(min=0)).masked_fill(picks < 0, -1)

    def folded(part: Part) -> Tensor:
        rows, index, selection = part
        own = torch.arange(selection.num_tokens, device=index.device).expand_as(index)
        into = original(index, own if selection.into is None else selection.into)
        return into.new_full((len(rows), tokens.num_tokens), -1).scatter(1, index, into)

    def order_in_prompt(part: Part) -> Tensor:
        return original(part[1], part[2].keep if part[2].sequence is None else part[2].sequence)

    width = max(selection.keep.shape[1] for selection in chosen)
    merged = any(selection.merged is not None for selection in chosen)
    return TokenSelection(
        joined(width, lambda part: original(part[1], part[2].keep)),
        tokens.num_tokens,
        merged=joined(width, lambda part: _features(tokens, part)) if merged else None,
        into=joined(tokens.num_tokens, folded) if any(each.into is not None for each in chosen) else None,
        sequence=joined(width, order_in_prompt) if any(each.sequence is not None for each in chosen) else None,
    )


def _features(tokens: VisualTokens, part: Part) -> Tensor:
    """Features (G, K, D) of what was chosen."""
    rows, index, selection = part
    if selection.merged is not None:
        return selection.merged
    return selection.apply(_gather(tokens.features[rows], index))
