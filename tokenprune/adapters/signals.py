"""What a pruner may ask for besides the visual tokens: signals of the vision tower, the text tower and the LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenprune.adapters.encoded import Encoded
from tokenprune.adapters.text_tower import TextTower
from tokenprune.adapters.timm_features import TimmEncoder, check_encoder
from tokenprune.errors import ModelError
from tokenprune.types import LLM_SIGNALS, PRE_LLM, Signal, Step, VisualTokens

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter

PAIRED = frozenset({Signal.CLIP_IMAGE_EMBEDS, Signal.CLIP_TEXT_EMBEDS})
PROMPT = frozenset({Signal.PROMPT_EMBEDS, Signal.PROMPT_MASK})
TEXTUAL = PROMPT | {Signal.CLIP_TEXT_EMBEDS}
FOREIGN = frozenset({Signal.ENCODER_FEATURES})  # not of the model, so that every adapter offers it


def check_offered(offers: frozenset[Signal], requires: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless all required signals are on offer; ``who`` makes them, for the message."""
    if missing := requires - offers:
        wanted, offered = (", ".join(sorted(signals)) for signals in (missing, offers))
        raise ModelError(f"{who} cannot give the signals {wanted}; it offers {offered}")


def check_steps(steps: Sequence[Step], offers: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless each step gets its signals: before the LLM those of an adapter, called ``who``."""
    for step in steps:
        if step.stage == PRE_LLM:
            check_offered(offers, step.selector.requires - FOREIGN, who)
            if step.selector.requires & FOREIGN:
                check_encoder(getattr(step.selector, "features", ""))
        else:
            check_offered(LLM_SIGNALS, step.selector.requires, f"a stage inside the LLM ({step.stage})")


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
def make_signals(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    requires: frozenset[Signal],
    questions: Sequence[str] | None,
    tower: TextTower | None,
    encoder: TimmEncoder | None = None,
) -> Signals:
    """See ``ModelAdapter.visual_tokens``; ``encoder`` gives features of its own."""
    check_offered(adapter.offers | (FOREIGN if encoder else frozenset()), requires, type(adapter).__name__)
    tower = tower or (adapter.load_text_tower() if requires & PAIRED else None)
    if questions is not None and len(questions) != len(inputs["input_ids"]):
        raise ModelError(f"there are {len(questions)} questions for {len(inputs['input_ids'])} prompts")
    if questions is None and requires & TEXTUAL:
        questions = adapter.questions(inputs)
    made = _make(adapter, inputs, encoded, requires - FOREIGN, questions or (), tower)
    if encoder is None or not requires & FOREIGN:
        return made
    features = encoder.features(encoded, adapter.processor.image_processor)
    return Signals({**made.of_tokens, Signal.ENCODER_FEATURES: features}, made.of_prompts)


def _make(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    encoded: Encoded,
    requires: frozenset[Signal],
    questions: Sequence[str],
    tower: TextTower | None,
) -> Signals:
    hidden = {Signal.VISION_HIDDEN} if Signal.CLIP_IMAGE_EMBEDS in requires else set()
    wanted = requires | hidden
    parts = {name: adapter.vision_signals(name, output, inputs, wanted) for name, output in encoded.outputs.items()}
    first = next(iter(parts.values()))
    of_tokens = {signal: encoded.in_order({name: part[signal] for name, part in parts.items()}) for signal in first}
    of_prompts: dict[Signal, Tensor] = {}
    if tower and hidden:
        of_tokens[Signal.CLIP_IMAGE_EMBEDS] = tower.project(of_tokens[Signal.VISION_HIDDEN])
    if tower and Signal.CLIP_TEXT_EMBEDS in requires:
        of_prompts[Signal.CLIP_TEXT_EMBEDS] = tower.embed_text(questions)
    if requires & PROMPT:
        embeds, mask = _embed(adapter.model, adapter.processor.tokenizer, questions)
        of_prompts |= {Signal.PROMPT_EMBEDS: embeds, Signal.PROMPT_MASK: mask}
    return Signals(*({name: x for name, x in found.items() if name in requires} for found in (of_tokens, of_prompts)))


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
    if Signal.CLS_ATTENTION in found:
        found[Signal.CLS_ATTENTION] = found[Signal.CLS_ATTENTION].mT
    found |= {name: x[rows.to(x.device)].to(features.device) for name, x in signals.of_prompts.items()}
    grid = grids.pop() if len(grids) == 1 else None
    padded = None if len(set(lengths)) == 1 else valid
    return VisualTokens(take(features), found, grid=grid, valid=padded, row_ids=layout.ids[which])


def _embed(model: Any, tokenizer: Any, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The language model's input embeddings (B, P, D) of questions, and (B, P) bool, False for padding."""
    table = model.get_input_embeddings()
    text = tokenizer(list(questions), add_special_tokens=False, padding=True, return_tensors="pt")
    ids, mask = (text[name].to(table.weight.device) for name in ("input_ids", "attention_mask"))
    if not bool(mask.any(1).all()):
        raise ModelError("a question is empty, so that no visual token can be relevant to it; give the questions")
    return table(ids.long()), mask.bool()
