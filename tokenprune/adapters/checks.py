"""What pruners may ask of an adapter, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenprune.core.errors import ModelError
from tokenprune.core.signals import FOREIGN, LLM_SIGNALS, PAIRED, PROMPT, Signal
from tokenprune.core.stages import PRE_LLM
from tokenprune.core.steps import Step
from tokenprune.towers.text.base import find_source
from tokenprune.towers.timm_features import check_encoder


def check_offered(offers: frozenset[Signal], requires: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless all required signals are on offer; ``who`` makes them, for the message."""
    if missing := requires - offers:
        wanted, offered = (", ".join(sorted(signals)) for signals in (missing, offers))
        stand_in = Signal.CLS_ATTENTION in missing and Signal.RECEIVED_ATTENTION in offers
        instead = "; received_attention stands in for cls_attention, as there is no CLS token" if stand_in else ""
        if missing & PAIRED and offers >= PROMPT:
            instead = "; no text tower is known for its vision tower: use conditioning prompt_embedding or none"
        raise ModelError(f"{who} cannot give the signals {wanted}; it offers {offered}{instead}")


def check_steps(steps: Sequence[Step], offers: frozenset[Signal], who: str) -> None:
    """Raise ModelError unless each step gets its signals: before the LLM those of an adapter, called ``who``."""
    for step in steps:
        if step.stage == PRE_LLM:
            check_offered(offers, step.selector.requires - FOREIGN, who)
            if Signal.ENCODER_FEATURES in step.selector.requires:
                check_encoder(getattr(step.selector, "features", ""))
        else:
            check_offered(LLM_SIGNALS, step.selector.requires, f"a stage inside the LLM ({step.stage})")


def check_tower(steps: Sequence[Step], config: Any, given: str | None) -> None:
    """Raise ModelError if a step needs a paired text tower, and there is none that is known; see ``find_source``."""
    for step in steps:
        if step.stage == PRE_LLM and step.selector.requires & PAIRED:
            find_source(config, given, getattr(step.selector, "text_tower", None))
