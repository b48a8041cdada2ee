"""Where the visual tokens of a batch are, and which rows of them a pruner chooses among.

A model encodes items: images or videos. An adapter divides an item into units, each a row for a pruner: the item as a
whole, its tiles, its frames. Tokens in no unit, such as those that end a line of tiles, stay and count as text.
Throughout, visual tokens are numbered over the whole batch in the order of their placeholders, as models count them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetExceedsError, ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.steps import Selector
from tokenprune.towers.items import Grid, Item
from tokenprune.towers.pictures import content_id


@dataclass(frozen=True, eq=False)
class Layout:
    """The units of a batch, in the order of the placeholders of their items.

    Attributes:
        units: (n,) long each, the numbers of its tokens.
        grids: of each unit.
        items: which item each unit is a part of.
        sizes: visual tokens of each item.
        rows: (U,) long, the batch row of each unit.
        numbers: (T,) long, which of its batch row's visual tokens each is.
        free: (T,) bool, whether it is in a unit.
        batch: B, rows of the batch.
        item_rows: the batch row of each item.
        pixels: of each item, of any shape.
        segments: of each unit, (n,) long, which tile or frame each token is of; None if units have one.
        places: of each unit, (n, 3) long, see ``VisualTokens.place``; None where it is not known.
    """

    units: tuple[Tensor, ...]
    grids: tuple[Grid | None, ...]
    items: tuple[int, ...]
    sizes: tuple[int, ...]
    rows: Tensor
    numbers: Tensor
    free: Tensor
    batch: int
    item_rows: tuple[int, ...]
    pixels: tuple[Tensor, ...]
    segments: tuple[Tensor, ...] | None = None
    places: tuple[Tensor | None, ...] | None = None

    @classmethod
    def of(cls, items: Sequence[Item], tokens: Sequence[Tensor], placeholder: Tensor) -> Layout:
        """The layout of a batch.

        Args:
            items: in the order of their placeholders.
            tokens: (n,) long for each, the numbers of its tokens.
            placeholder: (B, L) bool, where visual tokens go.
        """
        device = placeholder.device
        row = placeholder.nonzero()[:, 0]
        units = [(index, unit) for index, item in enumerate(items) for unit in item.units]
        placed = tuple(tokens[index][unit.tokens.to(device)] for index, unit in units)
        free = torch.zeros(len(row), dtype=torch.bool, device=device)
        free[torch.cat(placed)] = True
        first = torch.searchsorted(row, torch.arange(len(placeholder), device=device))
        return cls(
            units=placed,
            grids=tuple(unit.grid for _, unit in units),
            items=tuple(index for index, _ in units),
            sizes=tuple(map(len, tokens)),
            rows=row[torch.stack([unit[0] for unit in placed])],
            numbers=torch.arange(len(row), device=device) - first[row],
            free=free,
            batch=len(placeholder),
            item_rows=tuple(row[torch.stack([own[0] for own in tokens])].tolist()),
            pixels=tuple(item.pixels for item in items),
        )

    @functools.cached_property
    def ids(self) -> Tensor:
        """A hash (U,) long of the pixels of each unit's item and of the unit's place in it; made when first read."""
        hashes = [content_id(pixels).to(self.rows.device) for pixels in self.pixels]
        places = [index - self.items.index(item) for index, item in enumerate(self.items)]
        return torch.stack([hashes[item] + 2 * place for item, place in zip(self.items, places, strict=True)])

    def only(self, there: Tensor) -> Layout:
        """The layout of those visual tokens, (T,) bool, that are there; what is left of a unit has no grid."""
        units = tuple(tokens[there[tokens]] for tokens in self.units)
        whole = [len(unit) == len(before) for unit, before in zip(units, self.units, strict=True)]
        grids = tuple(grid if full else None for grid, full in zip(self.grids, whole, strict=True))
        return dataclasses.replace(self, units=units, grids=grids, free=self.free & there)

    def joined(self) -> Layout:
        """The layout in which all units of an item are one, and remain its segments."""
        members = [[unit for unit, item in enumerate(self.items) if item == each] for each in dict.fromkeys(self.items)]
        segments = [[torch.full_like(self.units[unit], n) for n, unit in enumerate(units)] for units in members]
        places = [[_place(self.units[unit], self.grids[unit], n) for n, unit in enumerate(units)] for units in members]
        whole = [torch.cat([self.units[unit] for unit in units]) for units in members]
        orders = [tokens.argsort() for tokens in whole]
        return dataclasses.replace(
            self,
            units=tuple(tokens[order] for tokens, order in zip(whole, orders, strict=True)),
            grids=tuple(self.grids[units[0]] if len(units) == 1 else None for units in members),
            items=tuple(self.items[units[0]] for units in members),
            rows=self.rows[torch.tensor([units[0] for units in members], device=self.rows.device)],
            segments=tuple(torch.cat(each)[order] for each, order in zip(segments, orders, strict=True)),
            places=tuple(_joined(each, order) for each, order in zip(places, orders, strict=True)),
        )

    def row_ids(self) -> Tensor:
        """A number (B,) long for each batch row that stands for all its images and their order."""
        place = torch.arange(len(self.rows), device=self.rows.device) - torch.searchsorted(self.rows, self.rows)
        ids = torch.zeros(self.batch, dtype=torch.long, device=self.rows.device)
        return ids.index_add_(0, self.rows, self.ids * (2 * place + 1))  # place: of a unit in its row

    def free_tokens(self) -> list[int]:
        """How many visual tokens of each batch row a pruner may choose among."""
        totals = [0] * self.batch
        for unit, item in zip(self.units, self.items, strict=True):
            totals[self.item_rows[item]] += len(unit)
        return totals

    def row_grids(self) -> list[Grid | None]:
        """The grid of each batch row whose visual tokens are one unit with a grid; None for the others."""
        grids: list[Grid | None] = [None] * self.batch
        rows = self.rows.tolist()
        for row, grid in zip(rows, self.grids, strict=True):
            grids[row] = grid if rows.count(row) == 1 else None
        return grids

    def counts(self, pruner: Selector, spec: ModelSpec, budget: Budget) -> list[tuple[int, ...]]:
        """How many tokens of each item each step of a pruner selects.

        Args:
            pruner: decides it from the budget and the number of tokens.
            spec: of the model.
            budget: of an item; those that have fewer tokens keep all.

        Raises:
            BudgetError: if it is spent before anything leaves.
        """
        totals = [0] * len(self.sizes)
        for unit, item in zip(self.units, self.items, strict=True):
            totals[item] += len(unit)

        def schedule(total: int) -> tuple[int, ...]:
            try:
                return pruner.schedule(spec, budget, total)
            except BudgetExceedsError:
                return pruner.schedule(spec, Budget(keep_ratio=1.0), total)

        found = {total: schedule(total) for total in set(totals)}
        return [found[total] for total in totals]

    def divided(self, counts: Sequence[int]) -> list[int]:
        """How many tokens of each unit stay if so many of each item do: in proportion to the units' sizes."""
        members = defaultdict(list)
        for index, item in enumerate(self.items):
            members[item].append(index)
        kept = [0] * len(self.units)
        for item, units in members.items():
            ends = list(accumulate(len(self.units[index]) for index in units))
            shares = [round(counts[item] * end / ends[-1]) for end in ends]
            for index, start, end in zip(units, [0, *shares], shares, strict=False):
                kept[index] = end - start
        return kept


@dataclass(frozen=True, eq=False)
class Choice:
    """What stays of some units that have equal numbers.

    Attributes:
        units: which.
        selection: a row for each.
    """

    units: tuple[int, ...]
    selection: TokenSelection


def _joined(places: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    """Places (n, 3) of several units in an order; None unless all are known."""
    known = [place for place in places if place is not None]
    return torch.cat(known)[order] if len(known) == len(places) else None


def _place(tokens: Tensor, grid: Grid | None, segment: int) -> Tensor | None:
    """Places (n, 3) long of tokens in raster order: segment, line and column; None without a grid."""
    if grid is None:
        return None
    number = torch.arange(len(tokens), device=tokens.device)
    return torch.stack([torch.full_like(number, segment), number // grid[1], number % grid[1]], 1)


def choices(layout: Layout, kept: Tensor) -> tuple[Choice, ...]:
    """Choices that keep the tokens that (T,) ``kept`` says, those of units of equal numbers together."""
    groups = defaultdict(list)
    for unit, tokens in enumerate(layout.units):
        groups[len(tokens), int(kept[tokens].sum())].append(unit)
    masks = {key: torch.stack([kept[layout.units[unit]] for unit in units]) for key, units in groups.items()}
    return tuple(Choice(tuple(units), TokenSelection.from_mask(masks[key])) for key, units in groups.items())


def kept_tokens(layout: Layout, chosen: Sequence[Choice], dropped: Sequence[int] = ()) -> Tensor:
    """Which visual tokens of a batch stay, (T,) bool.

    Args:
        layout: of the batch.
        chosen: what stays of units; of those that are in no choice everything does.
        dropped: units of which nothing stays.
    """
    kept = torch.ones_like(layout.free)
    for index in dropped:
        kept[layout.units[index]] = False
    for choice in chosen:
        tokens = torch.stack([layout.units[unit] for unit in choice.units])
        kept[tokens] = choice.selection.kept.to(tokens.device)
    return kept


def place_items(placeholder: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The numbers of each item's tokens among the placeholders.

    Args:
        placeholder: (B, L) bool, where the tokens of these items go, and no others.
        sizes: visual tokens of each item, in the order of the placeholders.

    Raises:
        ModelError: if the placeholders of a row are not those of a whole number of items.
    """
    per_row = placeholder.sum(1).cpu()
    ends = per_row.new_tensor(sizes).cumsum(0)
    rows = torch.searchsorted(per_row.cumsum(0), ends).clamp(max=len(per_row) - 1)
    if not torch.equal(torch.zeros_like(per_row).index_add_(0, rows, per_row.new_tensor(sizes)), per_row):
        raise ModelError(
            f"the prompts hold {per_row.tolist()} image placeholders (row by row), but the {len(sizes)} given images "
            f"have {list(sizes)} visual tokens; make prompts and images with one call of the model's own processor"
        )
    return list(torch.split(torch.arange(int(ends[-1]), device=placeholder.device), list(sizes)))
