"""What pruners choose at a stage inside the LLM, for all rows of a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.steps import Selector
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.stage_view import StageRows, StageView
from tokenprune.engine.providers.base import stage_signals
from tokenprune.functional.vectors import of_rows, take

History = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a pruner chose of some rows, which have equal numbers of visual tokens.

    Attributes:
        rows: (G,) long, of the batch.
        visual: (G, N) long, their visual tokens among those at the stage.
        selection: of these.
    """

    rows: Tensor
    visual: Tensor
    selection: TokenSelection

    @property
    def appended(self) -> int:
        """M, tokens that the selection appends."""
        merged = self.selection.merged
        return 0 if merged is None else merged.shape[1] - self.selection.keep.shape[1]

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and tokens of all that stay, as indices into (B, n), in the order of ``selection.there``."""
        there, keep = self.selection.there, self.selection.keep.clamp(min=0)
        return self.rows[:, None].expand_as(there)[there], self.visual.gather(1, keep)[there]


def choose(
    view: StageView,
    selector: Selector,
    quota: Sequence[int],
    history: Sequence[History],
    ids: Callable[[], Tensor],
) -> list[Chosen]:
    """The pruner's choices, for rows of equal numbers at once.

    Args:
        view: the stage.
        selector: the pruner.
        quota: visual tokens of each row that stay.
        history: of each row, see ``VisualTokens.history``.
        ids: makes (B,) long, see ``VisualTokens.row_ids``.
    """
    groups, alive, device = defaultdict(list), view.alive, view.hidden.device
    for row, (left, total) in enumerate(zip(alive.counts, view.prompt.counts, strict=True)):
        if left:
            alone = row if selector.adaptive else None
            groups[left, min(quota[row], left), total, history[row], alone].append(row)
    chosen = []
    for (left, k, _, past, _), members in groups.items():
        rows = torch.tensor(members, device=device)
        visual = of_rows(alive.visual, rows).nonzero()[:, 1].view(len(members), left)
        if k == 0:  # nothing to choose: all of them leave
            chosen.append(Chosen(rows, visual, TokenSelection(rows.new_zeros(len(members), 0), left)))
            continue
        signals = {str(signal): value for signal, value in stage_signals(StageRows(view, rows, visual), selector)}
        labels = None if alive.labels is None else of_rows(alive.labels, rows).gather(1, visual)
        tokens = VisualTokens(
            take(of_rows(view.hidden, rows), visual),
            signals,
            row_ids=functools.partial(_ids_of, ids, rows),
            labels=labels,
            history=past,
        )
        chosen.append(Chosen(rows, visual, selector.select(tokens, k)))
    return chosen


def _ids_of(ids: Callable[[], Tensor], rows: Tensor) -> Tensor:
    return ids().to(rows.device)[rows]


def staying(alive: Alive, chosen: Sequence[Chosen]) -> Tensor:
    """Which tokens stay, (B, n) bool, text included; (B, G, n) if key-value heads keep different ones."""
    heads = {each.selection.heads.shape[1] for each in chosen if each.selection.heads is not None}
    stay = alive.valid & ~alive.visual
    if not heads:
        for each in chosen:
            stay[each.rows[:, None], each.visual] = each.selection.kept
        return stay
    stay = stay[:, None].repeat(1, heads.pop(), 1)
    for each in chosen:
        kept = each.selection.kept[:, None] if each.selection.heads is None else each.selection.heads
        where = each.visual[:, None].expand(-1, stay.shape[1], -1)
        stay[each.rows] = stay[each.rows].scatter(2, where, kept.expand_as(where))
    return stay


def made(hidden: Tensor, chosen: Sequence[Chosen]) -> tuple[Tensor, Tensor]:
    """The hidden states of a stage as the choices make them, with those of tokens that they append.

    Args:
        hidden: (B, n, D), at the stage.
        chosen: what pruners chose there.

    Returns:
        (B, n + M, D), and (B, M) bool, False for what fills up rows that append fewer than M tokens.
    """
    most = max((each.appended for each in chosen), default=0)
    extra = hidden.new_zeros(len(hidden), most, hidden.shape[2])
    there = torch.zeros(extra.shape[:2], dtype=torch.bool, device=hidden.device)
    for each in chosen:
        selection = each.selection
        if selection.into is not None:
            folded = selection.apply(take(of_rows(hidden, each.rows), each.visual))
            hidden = hidden.index_put(each.places, folded[selection.there])
        if selection.merged is not None:
            k, merged = selection.keep.shape[1], selection.merged.to(hidden.dtype)
            hidden = hidden.index_put((each.rows[:, None], each.visual.gather(1, selection.keep)), merged[:, :k])
            extra[each.rows, : each.appended] = merged[:, k:]
            there[each.rows, : each.appended] = True
    return torch.cat([hidden, extra], 1) if most else hidden, there


def handed_on(alive: Alive, chosen: Sequence[Chosen]) -> Alive:
    """The tokens at a stage with what the choices hand on about those that stay, instead of what was said before."""
    found: dict[str, Any] = {}
    for name, empty in (("bias", 0.0), ("labels", -1)):
        given = [(each, value) for each in chosen if (value := getattr(each.selection, name)) is not None]
        if given:
            before = getattr(alive, name)
            dtype = given[0][1].dtype
            whole = torch.full_like(alive.slots, empty, dtype=dtype) if before is None else before
            for each, value in given:
                whole = whole.index_put(each.places, value[each.selection.there].to(whole))
            found[name] = whole
    return dataclasses.replace(alive, **found, memo={}) if found else alive


def only_drops(chosen: Sequence[Chosen], where: str) -> None:
    """Refuse choices that do more than to drop tokens.

    Raises:
        ModelError: if one folds tokens, makes features or hands something on.
    """
    for selection in (each.selection for each in chosen):
        if any(value is not None for value in (selection.into, selection.merged, selection.bias, selection.labels)):
            raise ModelError(f"at {where} tokens can only be dropped: into, merged, bias and labels are for the inputs")
