"""Everything that happens to the inputs of a model before the LLM sees them, and the plan for what happens inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.adapters.hooks import InsideLLM
from tokenprune.adapters.inputs import Encoded, PrunedInputs, encoder_outputs
from tokenprune.adapters.prefill import PromptTokens
from tokenprune.adapters.signals import PAIRED
from tokenprune.adapters.stopwatch import stopwatch
from tokenprune.budget import Budget
from tokenprune.errors import BudgetError
from tokenprune.types import PRE_LLM, Operations, Selector, TokenSelection

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter


def prune_inputs(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    pruner: Selector | None,
    budget: Budget | None,
    questions: Sequence[str] | None,
    encoded: Encoded | None,
) -> PrunedInputs:
    """See ``ModelAdapter.prune_inputs``."""
    steps = adapter.check_pruner(pruner) if pruner else ()
    if pruner and (budget := budget or pruner.budget) is None:
        raise BudgetError("budget: a pruner needs one; give keep_tokens, keep_ratio or average_tokens")
    before = next((step.selector for step in steps if step.stage == PRE_LLM), None)
    requires = before.requires if before else frozenset()
    # Loaded before the clock runs: it is not a part of the selection.
    tower = adapter.load_text_tower(getattr(before, "text_tower", None)) if requires & PAIRED else None
    device, seconds = adapter.model.device, {"vision": 0.0, "selection": 0.0}
    if encoded is None:
        with stopwatch(seconds, "vision", device):
            encoded = adapter.encode(inputs, requires)
    total = encoded.features.shape[1]
    counts = pruner.schedule(adapter.spec, budget, total) if pruner and budget else ()
    selection = None
    if before:
        with stopwatch(seconds, "selection", device):
            tokens = adapter.visual_tokens(inputs, requires, questions, encoded=encoded, tower=tower)
            selection = before.select(tokens, counts[0])
    shorter = adapter.shorten(inputs, selection, repack=bool(before and before.positions == "repacked"))
    shorter |= encoder_outputs(encoded.features, selection)
    within = steps[1:] if before else steps
    operations, inside = pruner.operations(adapter.spec) if pruner else None, None
    if within or operations:
        visual = adapter.placeholders(shorter["input_ids"])
        prompt = prompt_tokens(counts[len(steps) - len(within) :], visual, encoded, selection, operations)
        inside = InsideLLM(adapter.model, within, prompt, operations.active if operations else None)
    return PrunedInputs(shorter, selection, encoded.rows, total, seconds, inside)


def prompt_tokens(
    counts: Sequence[int],
    visual: Tensor,
    encoded: Encoded,
    selection: TokenSelection | None,
    operations: Operations | None,
) -> PromptTokens:
    """The prompts that enter the LLM.

    Args:
        counts: what the stages inside select of one image; a row selects among the tokens of all its images.
        visual: (B, L) bool, where visual tokens are.
        encoded: the images.
        selection: before the LLM; None if everything enters it.
        operations: tell the groups of the visual tokens; None if there are none.
    """
    images, total = encoded.features.shape[:2]
    keep = torch.arange(total).expand(images, -1) if selection is None else selection.keep
    rows, unit = encoded.rows, keep.shape[1]
    place = torch.arange(images, device=rows.device) - torch.searchsorted(rows, rows)  # of an image in its row
    number = torch.full(visual.shape, -1, device=visual.device)
    number[visual] = (keep.to(rows.device) + place[:, None] * total).flatten()
    ids = torch.zeros(len(visual), dtype=torch.long, device=rows.device)
    ids.index_add_(0, rows, encoded.ids.to(rows.device) * (2 * place + 1))
    group = None
    if operations is not None:
        sizes = torch.tensor(operations.sizes(unit))
        ranked = torch.arange(len(sizes)).repeat_interleave(sizes).expand(images, -1)
        order = keep if selection is None or selection.order is None else selection.order
        picked = order.cpu().argsort(dim=1)  # when each kept token was picked; kept tokens are ascending
        group = torch.zeros_like(number)
        group[visual] = ranked.gather(1, picked).flatten().to(group.device)
    return PromptTokens(visual, number, lambda tokens: [count * (tokens // unit) for count in counts], ids, group)
