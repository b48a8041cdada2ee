"""What a pruner chooses before the LLM, or before the projector that makes visual tokens of the tower's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Signal, TowerStates
from tokenprune.core.steps import Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.prompt.signals import rows_of
from tokenprune.engine.providers.encoding import Encoding


def chosen_before_llm(
    step: Step, view: Encoding, signals: Sequence[Signal], units: Sequence[int], k: int
) -> TokenSelection:
    """What a pruner chooses of some units.

    Args:
        step: of the pruner.
        view: the images.
        signals: what it is given.
        units: of equal numbers of tokens.
        k: how many tokens of each stay.
    """
    return in_order(step.selector.select(rows_of(view, signals, units), k), step)


def in_order(chosen: TokenSelection, step: Step) -> TokenSelection:
    """A selection without an order of its own where tokens keep their position ids, and so their order."""
    return chosen if step.positions == "repacked" else replace(chosen, sequence=None)


def chosen_before_projector(
    step: Step, view: Encoding, signals: Sequence[Signal], units: Sequence[int], k: int
) -> TokenSelection:
    """What a pruner chooses of the states of the vision tower, projected; as a choice among visual tokens.

    A token that no patch makes has no place in the prompt: it takes that of a token that leaves, the first ones.

    Args:
        step: of the pruner.
        view: the images.
        signals: what it is given.
        units: of equal numbers of tokens.
        k: how many tokens of each stay.

    Raises:
        ModelError: if such a token would need a position id of its own.
    """
    tokens = _with_special(view, rows_of(view, signals, units, view.signal(TowerStates())), units)
    chosen = in_order(step.selector.select(tokens, k), step)
    special = int(tokens.special.sum()) if tokens.special is not None else 0
    if step.positions != "repacked" and bool((chosen.keep[:, :special] < special).any()):
        raise ModelError("a pruner that keeps CLS, which has no position id of its own, needs positions: repacked")
    if not bool(chosen.there.all()):
        raise ModelError("before the projector all rows of a batch must keep equal numbers of tokens")
    values = chosen.apply(tokens.features) if chosen.merged is None else chosen.merged
    said = {"bias": chosen.bias, "labels": chosen.labels}
    if chosen.sequence is not None:
        at = torch.searchsorted(chosen.keep, chosen.sequence)
        values = values.gather(1, at[..., None].expand_as(values))
        said = {name: None if x is None else x.gather(1, at.to(x.device)) for name, x in said.items()}
    projected = view.adapter.project(values.to(tokens.features).flatten(0, 1)).view(*values.shape[:2], -1)
    scores = None if chosen.scores is None else chosen.scores[:, special:]
    places = _places(chosen.kept, special)
    return TokenSelection(places, tokens.num_tokens - special, scores, merged=projected, **said)


def _with_special(view: Encoding, tokens: VisualTokens, units: Sequence[int]) -> VisualTokens:
    """Visual tokens of whole pictures behind those that no patch makes; these have 0 in signals."""
    (output,) = view.encoded.outputs.values()
    pictures = torch.tensor([view.encoded.layout.items[unit] for unit in units])
    special = view.adapter.special_states(output)
    special = special[pictures.to(special.device)].to(tokens.features)
    number = special.shape[1]
    signals: dict[str, Tensor] = {}
    for signal in tokens.given():
        value = tokens.signals[str(signal)]
        if not signal.of_prompts:
            axis = 1 + signal.shape.split().index("tokens")
            value = pad(value.movedim(axis, -1), (number, 0)).movedim(-1, axis)
        signals[str(signal)] = value
    labels = None if tokens.labels is None else pad(tokens.labels, (number, 0), value=-1)
    mask = torch.arange(number + tokens.num_tokens, device=special.device) < number
    features = torch.cat([special, tokens.features], 1)
    return VisualTokens(
        features,
        signals,
        row_ids=tokens.row_ids,
        special=mask if number else None,
        labels=labels,
        history=tokens.history,
    )


def _places(kept: Tensor, special: int) -> Tensor:
    """Visual tokens (B, K) long whose places are taken, from (B, S + N) bool: which tokens stay, special first."""
    own, borrowed = kept[:, special:].clone(), kept[:, :special].sum(1)
    free = (~own).long().cumsum(1)
    own |= ~own & (free <= borrowed[:, None])
    return own.nonzero()[:, 1].view(len(kept), -1)
