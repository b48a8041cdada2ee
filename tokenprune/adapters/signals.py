"""What a pruner may ask for besides the visual tokens: signals of the vision tower, the text tower and the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokenprune.adapters.inputs import Encoded
from tokenprune.adapters.text_tower import TextTower
from tokenprune.errors import ModelError
from tokenprune.types import LLM_SIGNALS, PRE_LLM, Signal, Step

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter

PAIRED = frozenset({Signal.CLIP_IMAGE_EMBEDS, Signal.CLIP_TEXT_EMBEDS})
PROMPT = frozenset({Signal.PROMPT_EMBEDS, Signal.PROMPT_MASK})
TEXTUAL = PROMPT | {Signal.CLIP_TEXT_EMBEDS}


def check_offered(offers: frozenset[Signal], requires: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless all required signals are on offer; ``who`` makes them, for the message."""
    if missing := requires - offers:
        wanted, offered = (", ".join(sorted(signals)) for signals in (missing, offers))
        raise ModelError(f"{who} cannot give the signals {wanted}; it offers {offered}")


def check_steps(steps: Sequence[Step], offers: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless each step gets its signals: before the LLM those of an adapter, called ``who``."""
    for step in steps:
        if step.stage == PRE_LLM:
            check_offered(offers, step.selector.requires, who)
        else:
            check_offered(LLM_SIGNALS, step.selector.requires, f"a stage inside the LLM ({step.stage})")


def gather_signals(
    adapter: ModelAdapter,
    encoded: Encoded,
    requires: frozenset[Signal],
    questions: Sequence[str],
    tower: TextTower | None,
) -> dict[str, Tensor]:
    """Compute the required signals, one row an image.

    Args:
        adapter: of the model.
        encoded: the images.
        requires: signals to compute; nothing else is.
        questions: of each batch row; not read if no signal depends on the text.
        tower: the paired text tower; not read if no signal is in its space.
    """
    hidden = {Signal.VISION_HIDDEN} if Signal.CLIP_IMAGE_EMBEDS in requires else set()
    of_images = adapter.vision_signals(encoded.output, requires | hidden)
    of_prompts: dict[Signal, Tensor] = {}
    if tower and hidden:
        of_images[Signal.CLIP_IMAGE_EMBEDS] = tower.project(of_images[Signal.VISION_HIDDEN])
    if tower and Signal.CLIP_TEXT_EMBEDS in requires:
        of_prompts[Signal.CLIP_TEXT_EMBEDS] = tower.embed_text(questions)
    if requires & PROMPT:
        embeds, mask = _embed(adapter.model, adapter.processor.tokenizer, questions)
        of_prompts |= {Signal.PROMPT_EMBEDS: embeds, Signal.PROMPT_MASK: mask}
    signals = of_images | {name: signal[encoded.rows.to(signal.device)] for name, signal in of_prompts.items()}
    return {name: signals[name].to(encoded.features.device) for name in requires}


def _embed(model: Any, tokenizer: Any, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The language model's input embeddings (B, P, D) of questions, and (B, P) bool, False for padding."""
    table = model.get_input_embeddings()
    text = tokenizer(list(questions), add_special_tokens=False, padding=True, return_tensors="pt")
    ids, mask = (text[name].to(table.weight.device) for name in ("input_ids", "attention_mask"))
    if not bool(mask.any(1).all()):
        raise ModelError("a question is empty, so that no visual token can be relevant to it; give the questions")
    return table(ids.long()), mask.bool()
