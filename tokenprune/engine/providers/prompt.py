"""Signals of the question, as the LLM reads it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.core.errors import ModelError
from tokenprune.core.placement import device_of
from tokenprune.core.signals import PromptEmbeds, PromptMask
from tokenprune.engine.providers.base import provides
from tokenprune.engine.providers.encoding import Encoding


def question(signal: PromptEmbeds | PromptMask, view: Encoding) -> Hashable:
    """What is asked, on which the signal depends."""
    return view.asked(signal.question)


@provides(PromptEmbeds, depends=question)
def prompt_embeds(signal: PromptEmbeds, view: Encoding) -> Tensor:
    """Input embeddings (B, P, D) of the questions."""
    table = view.adapter.model.get_input_embeddings()
    found: Tensor = table(_words(view, table, view.asked(signal.question))["input_ids"].long())
    return found


@provides(PromptMask, depends=question)
def prompt_mask(signal: PromptMask, view: Encoding) -> Tensor:
    """Which tokens (B, P) bool of the questions are no padding."""
    table = view.adapter.model.get_input_embeddings()
    return _words(view, table, view.asked(signal.question))["attention_mask"].bool()


def _words(view: Encoding, table: Any, questions: Sequence[str]) -> dict[str, Tensor]:
    """Token ids of questions and their mask, on the device of the input embeddings."""
    how = {"add_special_tokens": False, "split_special_tokens": True}  # no word of a question is a special token
    text = view.adapter.processor.tokenizer(list(questions), padding=True, return_tensors="pt", **how)
    device = device_of(table, torch.device("cpu"))
    found = {name: text[name].to(device) for name in ("input_ids", "attention_mask")}
    if not bool(found["attention_mask"].bool().any(1).all()):
        raise ModelError("a question is empty, so that no visual token can be relevant to it; give the questions")
    return found
