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
from tokenprune.types import PRE_LLM, Selector, Step, TokenSelection

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
    inside = None
    if within:
        visual = adapter.placeholders(shorter["input_ids"])
        inside = _inside(adapter.model, within, counts[len(steps) - len(within) :], visual, encoded, selection)
    return PrunedInputs(shorter, selection, encoded.rows, total, seconds, inside)


def _inside(
    model: Any,
    steps: Sequence[Step],
    counts: Sequence[int],
    visual: Tensor,
    encoded: Encoded,
    selection: TokenSelection | None,
) -> InsideLLM:
    """What prunes inside the LLM; ``counts`` are of one image each, and a row selects among those of all its images."""
    images, total = encoded.features.shape[:2]
    keep = torch.arange(total).expand(images, -1) if selection is None else selection.keep
    rows = encoded.rows
    place = torch.arange(images, device=rows.device) - torch.searchsorted(rows, rows)  # of an image in its row
    number = torch.full(visual.shape, -1, device=visual.device)
    number[visual] = (keep.to(rows.device) + place[:, None] * total).flatten()
    ids = torch.zeros(len(visual), dtype=torch.long, device=rows.device)
    ids.index_add_(0, rows, encoded.ids.to(rows.device) * (2 * place + 1))
    unit = keep.shape[1]
    prompt = PromptTokens(visual, number, lambda tokens: [count * (tokens // unit) for count in counts], ids)
    return InsideLLM(model, steps, prompt)
