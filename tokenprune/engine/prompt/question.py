"""A prompt that asks, and what is asked in a prompt.

What a user says is data: a role's name, an image's placeholder or a mark of the chat template inside a question is text
of that question. On the way in, what the tokenizer would take for a mark is refused. On the way out, turns are found by
what the chat template itself writes, and a mark that is a token counts only where the prompt has that token: the same
letters, spelled, are words. Where a template marks turns by mere words (Vicuna's ``USER:``), it is inferred which are
marks: turns alternate, and a mark at the end of the prompt opens the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.prompt.chat_format import (
    COMMON,
    ChatFormat,
    Content,
    content_of,
    kind_of,
    marks_of,
    template_format,
    template_text,
    texts_of,
    unsaid,
    write_chat,
)

if TYPE_CHECKING:
    from tokenprune.core.turn import Part

OPEN, CLOSE = "\ud800", "\ud801"  # around a token that is no text; no text has lone surrogates
BLANK = rf"(?:\s|{OPEN}[^{CLOSE}]*{CLOSE})*"
Patterns = tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]  # of ChatFormat's first, assistant and user


def write_prompts(
    processor: Any, plain: str, samples: Sequence[Sample], parts: Sequence[Sequence[Part]], system: str = ""
) -> list[str]:
    """The prompts of samples: what their turns hold, after the turns that came before.

    Args:
        processor: with a chat template, or without.
        plain: prompt of a ``question`` for processors without one; what is shown comes first there.
        samples: what is asked.
        parts: of the turn of each.
        system: what the system says before it all; empty for nothing of ours.

    Raises:
        ModelError: if one cannot be asked, see ``check_words``.
    """
    check_words(processor, samples)
    if processor.chat_template is None:
        return [_plain_prompt(processor, plain, each) for each in parts]
    return [_written(processor, *pair, system) for pair in zip(samples, parts, strict=True)]


def _written(processor: Any, sample: Sample, parts: Sequence[Part], system: str) -> str:
    try:
        return write_chat(processor, _chat(sample, parts), system)
    except Exception as error:  # whatever a template raises
        where, name = sample.place or f"sample {sample.id!r}", type(processor).__name__
        raise ModelError(f"{where}: the chat template of {name} cannot write it: {error}") from error


def _chat(sample: Sample, parts: Sequence[Part]) -> list[tuple[str | Content, str | None]]:
    """Questions and answers; what is shown comes before the first question."""
    if not sample.earlier:
        return [(content_of(parts), None)]
    shown = content_of(part for part in parts if not isinstance(part, str))
    said = content_of(part for part in parts if isinstance(part, str))
    (question, answer), *others = sample.earlier
    return [([*shown, *content_of([question])], answer), *others, (said, None)]


def _plain_prompt(processor: Any, plain: str, parts: Sequence[Part]) -> str:
    tokens = {"image": "<image>", "video": getattr(processor, "video_token", None)}
    shown = "".join(tokens[kind_of(part)] or "" for part in parts if not isinstance(part, str))
    said = "\n".join(part for part in parts if isinstance(part, str))
    before = plain.replace("<image>", shown, 1) if shown else re.sub(r"<image>\s?", "", plain)
    return before.replace("{question}", said)


def check_shown(adapter: type[ModelAdapter], processor: Any, samples: Iterable[Sample]) -> None:
    """Refuse samples that show what a model cannot see; nothing is opened.

    Raises:
        ModelError: says which and where.
    """
    for sample in samples:
        where, kinds = sample.place or f"sample {sample.id!r}", {kind for kind, *_ in sample.turn.shape}
        if "video" in kinds and getattr(processor, "video_processor", None) is None:
            raise ModelError(f"{where}: {type(processor).__name__} takes no videos; choose another model")
        if not kinds and not adapter.text_alone:
            name = adapter.__name__.removesuffix("Adapter")
            raise ModelError(f"{where}: {name} answers no question without a picture")


def check_words(processor: Any, samples: Iterable[Sample]) -> None:
    """Refuse samples of which a text holds what the tokenizer takes for a mark, such as ``<image>``.

    Args:
        processor: with a chat template, or without.
        samples: what is asked.

    Raises:
        ModelError: says which and where; or that turns came before, and there is no chat template to write them with.
    """
    marks, tokenizer = _refused(processor), processor.tokenizer
    for sample in samples:
        where = sample.place or f"sample {sample.id!r}"
        if sample.earlier and processor.chat_template is None:
            kind = type(processor).__name__
            raise ModelError(f"{where}: {kind} has no chat template, so earlier turns cannot be written")
        texts = (sample.question, sample.turn.text, *(text for turn in sample.earlier for text in turn))
        for text in dict.fromkeys(texts):
            found = [name for name in marks.values() if name in text]
            # Some letters become a mark only when the tokenizer has made them equal, such as those of another width.
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found += [marks[token] for token in ids if token in marks and token != tokenizer.unk_token_id]
            if found:
                raise ModelError(
                    f"{where}: {found[0]!r} is a mark of the prompt to this model and no text; leave it out of the "
                    "question (the image comes before it by itself)"
                )


def _refused(processor: Any) -> dict[Any, str]:
    """Tokens that no text may hold. Mere words that mark turns, such as ``USER:``, may be said."""
    marks = marks_of(processor.tokenizer, template_text(processor))
    replaced = [getattr(processor, name, None) for name in ("image_token", "video_token")]  # before they are tokens
    names, refused = {name: name for name in replaced if isinstance(name, str)}, unsaid(processor.tokenizer, marks)
    return {token: name for token, name in marks.items() if name in refused} | names


def formats_of(processor: Any, roles: tuple[str, str] | None) -> tuple[ChatFormat, ...]:
    """Formats that prompts of a model may have: that of its adapter, that of its chat template, and common ones."""
    own = (ChatFormat(*roles, user=""),) if roles else ()
    return (*own, *template_format(processor), *COMMON)


def questions_of(adapter: ModelAdapter, ids: Tensor) -> list[str]:
    """What each of the prompts (B, L) asks."""
    tokenizer, formats = adapter.processor.tokenizer, formats_of(adapter.processor, adapter.roles)
    return [last_question(tokenizer, row, adapter.placeholders(row), formats) for row in ids]


def last_question(tokenizer: Any, ids: Tensor, placeholder: Tensor, formats: Sequence[ChatFormat] = COMMON) -> str:
    """What the user last asks: the text of their last turn after the images, without special tokens and markup.

    Args:
        tokenizer: of the language model.
        ids: (L,) the prompt.
        placeholder: (L,) bool, where visual tokens go. If no question follows them, the text before them counts, too.
        formats: that the prompt may have; it has the one of which a mark comes first.
    """
    marks = marks_of(tokenizer, *texts_of(formats))
    after = int(placeholder.nonzero().max()) + 1 if bool(placeholder.any()) else 0
    parts = (ids[~placeholder], ids[:after][~placeholder[:after]], ids[after:])
    whole, before, rest = (_spelled(tokenizer, part, marks) for part in parts)
    patterns = min((_patterns(each, marks) for each in formats), key=lambda each: _place(each, whole))
    begun = patterns[0].search(before) is not None
    turns = [*_turns(whole, patterns, _start(whole, patterns))]
    if after:
        opening = None if begun else re.match(BLANK + patterns[0].pattern, rest)
        turns += _turns(rest, patterns, opening.end() if opening else 0)
    lost = unsaid(tokenizer, marks)
    said = (
        re.sub(f"{OPEN}([^{CLOSE}]*){CLOSE}", lambda mark: " " if mark[1] in lost else mark[1], turn)
        for turn in reversed(turns)
    )
    return next(filter(None, (" ".join(turn.split()) for turn in said)), "")


def _spelled(tokenizer: Any, ids: Tensor, marks: Mapping[int, str]) -> str:
    """The text of tokens, in which those that are no text stand between ``OPEN`` and ``CLOSE``."""
    parts: list[str] = []
    for marked, run in groupby(ids.tolist(), key=marks.__contains__):
        tokens = [*run]
        names = [f"{OPEN}{marks[token]}{CLOSE}" for token in tokens if marked]
        parts += names or [tokenizer.decode(ids.new_tensor(tokens))]
    return " ".join(parts)


def _patterns(form: ChatFormat, marks: Mapping[int, str]) -> Patterns:
    """Find what a format writes in what ``_spelled`` gives, whatever the spaces."""
    names = sorted(map(re.escape, marks.values()), key=len, reverse=True)

    def pattern(text: str) -> str:
        if not text.strip():
            return re.escape(text) or "(?!)"  # nothing is nowhere
        pieces = re.findall("|".join([*names, r"\w+", r"\S"]), text)
        found = [re.escape(f"{OPEN}{piece}{CLOSE}" if piece in marks.values() else piece) for piece in pieces]
        start, end = r"(?<!\w)" if pieces[0][0].isalnum() else "", r"(?!\w)" if pieces[-1][-1].isalnum() else ""
        return start + r"\s*".join(found) + end

    first, assistant, user = (re.compile(pattern(text)) for text in astuple(form))
    return first, assistant, user


def _place(patterns: Patterns, text: str) -> float:
    """Where the first mark of a format is."""
    return min((found.start() for each in patterns if (found := each.search(text))), default=float("inf"))


def _start(text: str, patterns: Patterns) -> int:
    """Where the first question of a prompt begins: after the mark, if there are marks of turns at all."""
    first, assistant, _ = patterns
    found = first.search(text)
    if found is None or not (assistant.search(text, found.end()) or re.fullmatch(BLANK, text[: found.start()])):
        return 0
    return found.end()


def _turns(text: str, patterns: Patterns, start: int) -> Iterator[str]:
    """What the user says, turn by turn; the first question begins at ``start``."""
    _, assistant, user = patterns
    while (answer := assistant.search(text, start)) and (following := user.search(text, answer.end())):
        yield text[start : answer.start()]
        start = following.end()
    marks = [*assistant.finditer(text, start)]
    if not marks:
        yield text[start:]
    else:  # a mark at the end opens the answer, so that those before it are words
        yield text[start : (marks[-1] if re.fullmatch(BLANK, text[marks[-1].end() :]) else marks[0]).start()]
