"""A prompt that asks, and what is asked in a prompt."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from tokenprune.errors import ModelError
from tokenprune.types import Sample

# What begins a turn of the user and of the assistant in common chat formats.
ROLES = (
    r"USER:|\[INST\]|<\|im_start\|>user|<\|start_header_id\|>user<\|end_header_id\|>",
    r"ASSISTANT:|\[/INST\]|<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>",
)


def write_prompt(processor: Any, plain: str, sample: Sample) -> str:
    """The prompt of a sample: one image, then its question, after the turns that came before.

    Args:
        processor: with a chat template, or without.
        plain: prompt of a ``question`` for processors without one.
        sample: what is asked.

    Raises:
        ModelError: if turns came before, and there is no chat template to write them with.
    """
    if processor.chat_template is None:
        if sample.earlier:
            raise ModelError(f"{type(processor).__name__} has no chat template, so earlier turns cannot be written")
        return plain.format(question=sample.question)
    turns: list[dict[str, Any]] = []
    for question, answer in (*sample.earlier, (sample.question, None)):
        image = [] if turns else [{"type": "image"}]
        turns.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True)
    return text


def last_question(tokenizer: Any, ids: Tensor, placeholder: Tensor, roles: tuple[str, str] = ROLES) -> str:
    """What the user last asks: the text of their last turn after the images, without special tokens and markup.

    Args:
        tokenizer: of the language model.
        ids: (L,) the prompt.
        placeholder: (L,) bool, where visual tokens go. If no question follows them, the text before them counts, too.
        roles: regular expressions of what begins a turn of the user and of the assistant.
    """
    at = placeholder.nonzero()
    after = int(at[-1]) + 1 if len(at) else 0
    return _last_turn(tokenizer, ids[after:], roles) or _last_turn(tokenizer, ids[~placeholder], roles)


def _last_turn(tokenizer: Any, ids: Tensor, roles: tuple[str, str]) -> str:
    user, assistant = roles
    special = "|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)"
    turns = [re.split(assistant, turn)[0] for turn in re.split(user, tokenizer.decode(ids))]
    said = [" ".join(re.sub(special, " ", turn).split()) for turn in turns]
    return next(filter(None, reversed(said)), "")
