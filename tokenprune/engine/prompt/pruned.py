"""Everything that happens to the inputs of a model before the LLM sees them, and the plan for what happens inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError
from tokenprune.core.plan import Operations
from tokenprune.core.precision import on_cpu_unless_said
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Signal
from tokenprune.core.stages import PROJECTOR
from tokenprune.core.steps import Selector, Step
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.engine.prompt.encoded import Encoded, encode
from tokenprune.engine.prompt.layout import Choice, Layout, choices
from tokenprune.engine.prompt.left import Left, handed_on, reordered
from tokenprune.engine.prompt.projector import chosen_before_llm, chosen_before_projector
from tokenprune.engine.prompt.shorten import PrunedInputs, prune_prompt
from tokenprune.engine.providers.base import Facts, check_signals
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.providers.steps import check_steps
from tokenprune.engine.stopwatch import stopwatch
from tokenprune.engine.tower.encode import TowerPlan

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter


@on_cpu_unless_said()
def prune_inputs(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    pruner: Selector,
    budget: Budget | None,
    questions: Sequence[str] | None,
    encoded: Encoded | None,
    samples: Sequence[Sample] | None = None,
) -> PrunedInputs:
    """Encode images and choose what enters the LLM, for ``Session.prune_inputs``."""
    steps, budget = _checked(adapter, pruner, budget)
    in_tower, first, within = _parts(steps)
    given = check_signals(first.selector.requires if first else (), _facts(adapter))
    seconds = {"vision": 0.0, "selection": 0.0}
    if encoded is None or in_tower:
        plan = _tower_plan(adapter, pruner, budget, in_tower)
        with stopwatch(seconds, "vision", adapter.device):
            encoded = encode(adapter, inputs, frozenset(given), plan)
        seconds = {"vision": seconds["vision"] - encoded.seconds, "selection": encoded.seconds}
    whole, encoded = encoded.layout, _at_hand(encoded, first)
    layout, left = encoded.layout, Left.all(encoded)
    counts = whole.counts(pruner, adapter.spec, budget) if budget else []
    if first:
        quotas = layout.divided([each[len(in_tower)] for each in counts])
        view = Encoding(adapter, inputs, encoded, questions, samples, quotas)
        left = _chosen(first, view, given, seconds)
    early = (*encoded.early, *([(first.stage, left.kept)] if first else []))
    closed = _closed(steps, [kept for _, kept in early])
    shorter = shortened_prompt(adapter, inputs, left.kept, closed=closed) | left.encoder_outputs(adapter)
    later = [each[len(steps) - len(within) :] for each in counts]
    past = _past(whole, [kept for _, kept in early])
    inside = _inside(adapter, pruner, within, later, left, shorter["input_ids"], past)
    if in_tower:  # what is told is of all visual tokens, not of those that came out of the tower
        return PrunedInputs(shorter, choices(whole, left.kept), left.kept, whole, seconds, inside, early)
    return PrunedInputs(shorter, left.chosen, left.kept, layout, seconds, inside, early)


def _inside(
    adapter: ModelAdapter,
    pruner: Selector,
    steps: Sequence[Step],
    counts: Sequence[Sequence[int]],
    left: Left,
    ids: Tensor,
    past: Sequence[tuple[int, ...]],
) -> InsidePlan | None:
    """What happens inside the LLM; None if nothing does.

    Args:
        adapter: of the model.
        pruner: whose operations run.
        steps: inside the LLM.
        counts: what these select of each item.
        left: what goes on to the LLM.
        ids: of the shortened prompts.
        past: of each row, visual tokens that arrived at each stage before the LLM.

    Raises:
        ModelError: if the model cannot do it.
    """
    operations, encoded = pruner.operations(adapter.spec), left.encoded
    if not (steps or operations or any(choice.selection.bias is not None for choice in left.chosen)):
        return None
    visual, aligned = adapter.placeholders(ids), (encoded.layout, left.kept, left.chosen)
    prompt = prompt_tokens(counts, visual, *aligned, operations, past=past, labels=encoded.labels)
    plan = InsidePlan(tuple(steps), prompt, operations.active if operations else None)
    InsideLLM(adapter.model, plan)  # refuses what it cannot prune before anything runs
    return plan


def _parts(steps: Sequence[Step]) -> tuple[tuple[Step, ...], Step | None, tuple[Step, ...]]:
    """The steps inside the vision tower, the one between it and the LLM if there is one, and those inside the LLM."""
    in_tower = tuple(step for step in steps if step.stage.place == "tower")
    within = tuple(step for step in steps if step.stage.inside)
    return in_tower, next(iter(steps[len(in_tower) : len(steps) - len(within)]), None), within


def _tower_plan(
    adapter: ModelAdapter, pruner: Selector, budget: Budget | None, steps: Sequence[Step]
) -> TowerPlan | None:
    """What leaves inside the vision tower, where images have equal numbers of patches; None if nothing does."""
    if budget is None or not steps:
        return None
    counts = pruner.schedule(adapter.spec, budget, adapter.spec.visual_tokens)
    return TowerPlan(tuple(steps), counts[: len(steps)])


def _at_hand(encoded: Encoded, step: Step | None) -> Encoded:
    """Encoded images as a step sees them: with what came out of the tower, segments together if it wants them so."""
    layout = encoded.layout.only(encoded.there) if encoded.early else encoded.layout
    together = step is not None and step.selector.segments == "together"
    return replace(encoded, layout=layout.joined() if together else layout)


def _past(layout: Layout, early: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """How many visual tokens of each batch row arrived at stages from which (T,) ``early`` went on, in their order."""
    arrived = [torch.ones_like(kept) for kept in early[:1]] + list(early[:-1])
    return list(zip(*(layout.only(there).free_tokens() for there in arrived), strict=True))


def _closed(steps: Sequence[Step], early: Sequence[Tensor]) -> Tensor | None:
    """Which visual tokens (T,) bool leave no gap in the position ids; None if all that leave do.

    Args:
        steps: of a pruner.
        early: which tokens go on from each of the first of them.
    """
    closed = None
    for index, (step, kept) in enumerate(zip(steps, early, strict=False)):
        if step.positions == "repacked":
            leaving = ~kept & early[index - 1] if index else ~kept
            closed = leaving if closed is None else closed | leaving
    return closed


def _chosen(step: Step, view: Encoding, given: Sequence[Signal], seconds: dict[str, float]) -> Left:
    """What goes on from a step before the LLM.

    Args:
        step: of the pruner.
        view: the images, and how many tokens of each unit stay.
        given: signals that its pruner gets.
        seconds: to which those of the selection are added.
    """
    view.load(given)  # before the clock runs: it is not a part of the selection
    with stopwatch(seconds, "selection", view.adapter.device):
        chosen = choose(step, view, given)
        return Left.of(view.encoded, chosen, [unit for unit, quota in enumerate(view.quotas) if not quota])


def _facts(adapter: ModelAdapter) -> Facts:
    return Facts(type(adapter), adapter.model.config, adapter.text_tower)


def _checked(adapter: ModelAdapter, pruner: Selector, budget: Budget | None) -> tuple[tuple[Step, ...], Budget | None]:
    """The steps of a pruner and its budget; None if nothing prunes."""
    steps, budget = pruner.steps(adapter.spec), budget or pruner.budget
    check_steps(steps, _facts(adapter))
    if not steps:
        return (), None
    if budget is None:
        raise BudgetError("budget: a pruner needs one; give keep_tokens, keep_ratio, average_tokens or flops")
    adapter.check_budget(pruner, adapter.spec, budget)
    return steps, budget


def shortened_prompt(
    adapter: ModelAdapter, inputs: Mapping[str, Any], kept: Tensor, *, closed: Tensor | None
) -> dict[str, Any]:
    """Inputs without pixels and without the placeholders of visual tokens that leave.

    Args:
        adapter: of the model.
        inputs: whole.
        kept: (T,) bool, which visual tokens stay.
        closed: (T,) bool, whose gaps in the position ids are closed; None for nobody's.
    """
    given = inputs.get("position_ids")
    whole = {**inputs, "position_ids": adapter.positions(inputs) if given is None else given}
    placeholder, pad = adapter.placeholders(inputs["input_ids"]), adapter.processor.tokenizer.pad_token_id or 0

    def close(positions: Tensor, place: Tensor, gone: Tensor) -> Tensor:
        gaps = torch.zeros_like(gone)
        gaps[place] = gone.new_zeros(()) if closed is None else closed.to(gone.device)
        return adapter.repacked(positions, place, gaps)

    closing = None if closed is None else close
    return prune_prompt(adapter.model, whole, placeholder, kept, close=closing, pad_token_id=pad)


def choose(step: Step, view: Encoding, signals: Sequence[Signal]) -> tuple[Choice, ...]:
    """Let a pruner select, units of equal numbers at once.

    Args:
        step: before the projector or the LLM.
        view: the images, and how many tokens of each unit stay; units with 0 are left out.
        signals: what its pruner is given.
    """
    choosing = chosen_before_projector if step.stage == PROJECTOR else chosen_before_llm
    layout = view.encoded.layout
    groups: dict[Any, list[int]] = {}
    for unit, (tokens, quota) in enumerate(zip(layout.units, view.quotas, strict=True)):
        shape = None if layout.segments is None else tuple(layout.segments[unit].tolist())
        key = (len(tokens), quota, layout.grids[unit], shape, unit if step.selector.adaptive else None)
        groups.setdefault(key, []).append(unit)
    return tuple(
        Choice(tuple(units), choosing(step, view, signals, units, key[1])) for key, units in groups.items() if key[1]
    )


def prompt_tokens(
    counts: Sequence[Sequence[int]],
    visual: Tensor,
    layout: Layout,
    kept: Tensor,
    chosen: Sequence[Choice] = (),
    operations: Operations | None = None,
    *,
    past: Sequence[tuple[int, ...]] | None = None,
    labels: Tensor | None = None,
) -> PromptTokens:
    """The prompts that enter the LLM.

    Args:
        counts: what the stages inside select of each item; a row selects among the tokens of all its items.
        visual: (B, L) bool, where visual tokens are.
        layout: of the visual tokens, before any left.
        kept: (T,) bool, which entered the LLM.
        chosen: what stayed before the LLM.
        operations: tell the groups of the visual tokens; None if there are none.
        past: of each row, visual tokens that arrived at each stage before the LLM; None if only what is in ``chosen``
            left there.
        labels: (T,) long, what stages in the vision tower handed on; None if they did not.
    """

    def placed(tokens: Tensor, filler: float) -> Tensor:
        prompt = torch.full(visual.shape, filler, dtype=tokens.dtype, device=visual.device)
        return prompt.masked_scatter(visual, tokens[kept.to(tokens.device)].to(visual.device))

    quota = [[0] * len(next(iter(counts), ())) for _ in range(layout.batch)]
    for row, each in zip(layout.item_rows, counts, strict=False):
        quota[row] = [total + count for total, count in zip(quota[row], each, strict=True)]
    said = {"bias": handed_on(layout, chosen, "bias", 0), "labels": handed_on(layout, chosen, "labels", -1, labels)}
    groups = None if operations is None else _groups(operations, layout, chosen)
    said["group"] = None if groups is None else reordered(layout, chosen, groups)
    aligned = {name: None if x is None else placed(x, -1 if name == "labels" else 0) for name, x in said.items()}
    if past is None:
        past = [(total,) for total in layout.free_tokens()] if chosen else []
    free, number = placed(layout.free, False), placed(reordered(layout, chosen, layout.numbers), -1)
    return PromptTokens(free, number, quota, layout.row_ids, past=past, **aligned)


def _groups(operations: Operations, layout: Layout, chosen: Sequence[Choice]) -> Tensor:
    """Each token's group (T,) long, by when it was picked, or by its place if all tokens entered the LLM."""
    group = torch.zeros_like(layout.numbers)
    picked = {unit: order for choice in chosen for unit, order in zip(choice.units, _order(choice), strict=True)}
    for unit, tokens in enumerate(layout.units):
        order = tokens[picked[unit].to(tokens.device)] if unit in picked else tokens
        sizes = torch.tensor(operations.sizes(len(order)), device=tokens.device)
        group[order] = torch.arange(len(sizes), device=tokens.device).repeat_interleave(sizes)
    return group


def _order(choice: Choice) -> Tensor:
    selection = choice.selection
    return selection.keep if selection.order is None else selection.order
