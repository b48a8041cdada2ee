"""What is asked in a prompt."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

# What begins a turn of the user and of the assistant in common chat formats.
ROLES = (
    r"USER:|\[INST\]|<\|im_start\|>user|<\|start_header_id\|>user<\|end_header_id\|>",
    r"ASSISTANT:|\[/INST\]|<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>",
)


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
