"""How a chat is written down: what its template puts between what is said, and which tokens are no text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from tokenprune.core.clip import Clip

if TYPE_CHECKING:
    from tokenprune.core.turn import Part

Content = Sequence[Mapping[str, str]]  # what a message of a chat holds
SAID = ("firstquestion", "firstanswer", "secondquestion")  # stands for what is said, and is in no template


@dataclass(frozen=True)
class ChatFormat:
    """What is written between what is said; spaces at the ends do not count.

    Attributes:
        first: before the first question.
        assistant: between a question and its answer.
        user: between an answer and the next question; empty if there is none.
    """

    first: str
    assistant: str
    user: str


COMMON = (  # for prompts that were not written with the processor's own template
    ChatFormat("USER:", "ASSISTANT:", "USER:"),
    ChatFormat("[INST]", "[/INST]", "[INST]"),
    ChatFormat("<|im_start|>user", "<|im_end|>\n<|im_start|>assistant", "<|im_end|>\n<|im_start|>user"),
    ChatFormat("<start_of_turn>user", "<end_of_turn>\n<start_of_turn>model", "<end_of_turn>\n<start_of_turn>user"),
    ChatFormat("User:", "<end_of_utterance>\nAssistant:", "<end_of_utterance>\nUser:"),
    ChatFormat(
        "<|start_header_id|>user<|end_header_id|>",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>",
    ),
)


def write_chat(processor: Any, said: Iterable[tuple[str | Content, str | None]], system: str = "") -> str:
    """A chat as the template of a processor writes it.

    Args:
        processor: with a chat template.
        said: questions and answers; None for one that is to come. A question is text, or parts as templates take them.
        system: what the system says before it all; empty for nothing of ours.
    """
    turns: list[dict[str, Any]] = [{"role": "system", "content": [_said(system)]}] if system else []
    for question, answer in said:
        turns.append({"role": "user", "content": [_said(question)] if isinstance(question, str) else list(question)})
        if answer is not None:
            turns.append({"role": "assistant", "content": [_said(answer)]})
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True)
    return text


def _said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def content_of(parts: Iterable[Part]) -> Content:
    """Parts of a turn as chat templates take them; pictures and videos by their kind alone."""
    return [_said(part) if isinstance(part, str) else {"type": kind_of(part)} for part in parts]


def kind_of(part: Part) -> str:
    """What a part of a turn is: ``text``, ``image`` or ``video``."""
    return "text" if isinstance(part, str) else "video" if isinstance(part, Clip) else "image"


def template_text(processor: Any) -> str:
    """What the chat template of a processor makes of ``SAID``; empty if there is none, or it takes no such chat."""
    if getattr(processor, "chat_template", None) is None:
        return ""
    try:
        return write_chat(processor, (SAID[:2], (SAID[2], None)))
    except Exception:  # whatever a template raises
        return ""


def template_format(processor: Any) -> tuple[ChatFormat, ...]:
    """What the chat template of a processor writes between what is said; empty if it does not show."""
    text = template_text(processor)
    parts = re.split("|".join(SAID), text)
    if len(parts) != len(SAID) + 1:
        return ()
    before, assistant, user, _ = parts
    # What comes before the first question but not before others, such as a system prompt, begins no turn.
    names = sorted(map(re.escape, marks_of(processor.tokenizer, text).values()), key=len, reverse=True)
    ours, theirs = (re.findall("|".join([*names, "."]), part, re.DOTALL)[::-1] for part in (before, user))
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))]
    found = ChatFormat("".join(shared[::-1]).strip(), assistant.strip(), user.strip())
    return (found,) if all(astuple(found)) else ()


def marks_of(tokenizer: Any, *written: str) -> dict[int, str]:
    """Number and name of the tokens that are no text.

    Args:
        tokenizer: of the language model.
        written: what a chat format writes; tokens that were added to the vocabulary and are in it are no text either.
    """
    special = dict(zip(getattr(tokenizer, "all_special_ids", ()), tokenizer.all_special_tokens, strict=False))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return special | {
        number: token.content
        for number, token in added.items()
        if token.content.strip() and (token.special or any(token.content in text for text in written))
    }


def unsaid(tokenizer: Any, marks: Mapping[int, str]) -> set[str]:
    """Names of marks that nobody says: special tokens, and others that are no words, as ``USER:`` is one."""
    return {name for name in marks.values() if not name[:1].isalnum()} | {*tokenizer.all_special_tokens}


def texts_of(formats: Sequence[ChatFormat]) -> list[str]:
    """All that some formats write."""
    return [text for each in formats for text in astuple(each)]
