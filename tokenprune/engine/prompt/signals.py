"""What a pruner may ask for besides the visual tokens: signals of the vision tower, the text tower and the LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.adapters.checks import check_offered
from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.precision import exact, on_cpu_unless_said
from tokenprune.core.signals import PAIRED, PROMPT, TEXTUAL, Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.question import questions_of
from tokenprune.towers.text.base import TextTower, load_text_tower

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter

Source = Callable[[Encoded], Tensor]  # makes a signal (T, ...) that the model alone has not; equal ones make the same


@dataclass(frozen=True, eq=False)
class Signals:
    """Computed signals.

    Attributes:
        of_tokens: (T, ...) each, in the order of the placeholders.
        of_prompts: (B, ...) each.
    """

    of_tokens: Mapping[Signal, Tensor]
    of_prompts: Mapping[Signal, Tensor]


@torch.no_grad()
@on_cpu_unless_said()
def make_signals(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    requires: frozenset[Signal],
    questions: Sequence[str] | None,
    tower: TextTower | None,
    sources: Mapping[Signal, Source] | None = None,
) -> Signals:
    """See ``Session.visual_tokens``; ``sources`` make signals that the model alone does not have."""
    sources = sources or {}
    check_offered(adapter.offers | sources.keys(), requires, type(adapter).__name__)
    tower = tower or (load_text_tower(adapter.model, adapter.text_tower, None) if requires & PAIRED else None)
    if questions is not None and len(questions) != len(inputs["input_ids"]):
        raise ModelError(f"there are {len(questions)} questions for {len(inputs['input_ids'])} prompts")
    if questions is None and requires & TEXTUAL:
        questions = questions_of(adapter, inputs["input_ids"])
    asked = tuple(questions or ())
    made_by = {**dict.fromkeys(PAIRED, tower), **sources}
    keys = {signal: (signal, made_by.get(signal), asked if signal in TEXTUAL else ()) for signal in requires}
    missing = frozenset(signal for signal, key in keys.items() if key not in encoded.made)
    made = _make(adapter, inputs, encoded, missing - sources.keys(), asked, tower)
    made |= {signal: source(encoded) for signal, source in sources.items() if signal in missing}
    encoded.made.update({keys[signal]: x for signal, x in made.items()})
    found = {signal: encoded.made[key] for signal, key in keys.items()}
    return Signals(*({s: x for s, x in found.items() if (s in TEXTUAL) is textual} for textual in (False, True)))


def _make(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    requires: frozenset[Signal],
    questions: Sequence[str],
    tower: TextTower | None,
) -> dict[Signal, Tensor]:
    hidden = {Signal.VISION_HIDDEN} if Signal.CLIP_IMAGE_EMBEDS in requires else set()
    wanted = requires | hidden
    parts = {}
    for name, output in encoded.outputs.items():
        found = adapter.vision_signals(name, output, inputs, wanted)
        if tower and hidden:  # of patches, so that a token's embedding is the mean of its patches', in that space
            with exact(encoded.features.device):
                found[Signal.CLIP_IMAGE_EMBEDS] = tower.project(found[Signal.VISION_HIDDEN], normed=adapter.normed)
        parts[name] = {signal: adapter.per_token(name, x, inputs) for signal, x in found.items() if signal in requires}
    first = next(iter(parts.values()))
    made = {signal: encoded.in_order({name: part[signal] for name, part in parts.items()}) for signal in first}
    if tower and Signal.CLIP_TEXT_EMBEDS in requires:
        with exact(encoded.features.device):
            made[Signal.CLIP_TEXT_EMBEDS] = tower.embed_text(questions)
    if requires & PROMPT:
        embeds, mask = _embed(adapter.model, adapter.processor.tokenizer, questions)
        made |= {Signal.PROMPT_EMBEDS: embeds, Signal.PROMPT_MASK: mask}
    return {name: x for name, x in made.items() if name in requires}


def rows_of(encoded: Encoded, signals: Signals, units: Sequence[int]) -> VisualTokens:
    """What a pruner sees of some units; shorter ones are padded at the end.

    Args:
        encoded: the images.
        signals: computed for them.
        units: which, in the order of the rows.
    """
    layout, features = encoded.layout, encoded.features.detach()
    lengths = [len(layout.units[unit]) for unit in units]
    index = torch.nn.utils.rnn.pad_sequence([layout.units[unit] for unit in units], batch_first=True)
    valid = torch.arange(index.shape[1], device=index.device) < torch.tensor(lengths, device=index.device)[:, None]
    which = torch.tensor(units, device=index.device)
    rows, grids = layout.rows[which], {layout.grids[unit] for unit in units}

    def take(x: Tensor) -> Tensor:
        return x[index.to(x.device)].to(features.device)

    found: dict[str, Tensor] = {name: take(x) for name, x in signals.of_tokens.items()}
    for name in {Signal.CLS_ATTENTION, Signal.RECEIVED_ATTENTION} & found.keys():
        found[name] = found[name].mT
    found |= {name: x[rows.to(x.device)].to(features.device) for name, x in signals.of_prompts.items()}
    grid = grids.pop() if len(grids) == 1 else None
    padded = None if len(set(lengths)) == 1 else valid
    return VisualTokens(take(features), found, grid=grid, valid=padded, row_ids=lambda: layout.ids[which])


def _embed(model: Any, tokenizer: Any, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The language model's input embeddings (B, P, D) of questions, and (B, P) bool, False for padding."""
    table = model.get_input_embeddings()
    how = {"add_special_tokens": False, "split_special_tokens": True}  # no word of a question is a special token
    text = tokenizer(list(questions), padding=True, return_tensors="pt", **how)
    device = device_of(table, torch.device("cpu"))
    ids, mask = (text[name].to(device) for name in ("input_ids", "attention_mask"))
    if not bool(mask.any(1).all()):
        raise ModelError("a question is empty, so that no visual token can be relevant to it; give the questions")
    return table(ids.long()), mask.bool()
