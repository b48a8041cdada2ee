"""How harnesses read an answer: what a text is taken to say. The same answers give each another score.

The rules are written from the harnesses' behaviour: lmms-eval 0.7.3, LLaVA's evaluation at commit c121f04, the scoring
tool that MME ships with, and VLMEvalKit as of August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

YesNo = Literal["yes", "no"]
MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WITH_COMMA = re.compile(r"\d,\d")
STOP = re.compile(r"\.(?!\d)")
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
FIRST_LETTER = re.compile(r"\W*([A-Z])(?=\W*$|[.):,\n])")
ANSWER_IS = re.compile(r"ANSWER IS\W*([A-Z])\b")
LAST_LETTER = re.compile(r"\b([A-Z])\W*$")
LETTERS = "ABCDEFGHIJ"


def yes_no_lmms_eval(answer: str) -> YesNo | None:
    """lmms-eval's reading of POPE: the whole answer is yes or no; ``Yes.`` is neither."""
    return _exactly(answer.lower().strip())


def yes_no_llava(answer: str) -> YesNo:
    """LLaVA's reading of POPE: no, if the first sentence has the word No, no or not, and else yes, always."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def yes_no_vlmevalkit(answer: str) -> YesNo | None:
    """VLMEvalKit's reading of POPE and MME: the word yes without no, or no without yes, punctuation aside."""
    words = _without_punctuation(answer).lower().split()
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


def yes_no_mme(answer: str) -> YesNo | None:
    """The reading of MME's own tool, which LLaVA's evaluation calls: yes, or else no, in the first four characters."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def yes_no_mme_lmms_eval(answer: str) -> YesNo | None:
    """lmms-eval's reading of MME: as MME's own tool, but without spaces around, without stops, and ``y`` and ``n``."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return "yes" if text == "y" else "no" if text == "n" else None
    return yes_no_mme(text)


def letter_llava(answer: str) -> str | None:
    """LLaVA's reading of ScienceQA: ``B``, ``B. text``, or ``The answer is B.`` once, in capitals."""
    if answer in LETTERS and len(answer) == 1:
        return answer
    if len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    found = THE_ANSWER_IS.findall(answer)
    return found[0] if len(found) == 1 else None


def letter_lmms_eval(answer: str) -> str | None:
    """lmms-eval's reading of ScienceQA: a letter of either case, or a capital and a stop, with anything behind."""
    text = answer.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else None


def letter_plain(answer: str) -> str | None:
    """A letter at the beginning with a mark or nothing behind, or after ``the answer is``, or a capital at the end.

    No harness has this rule: it is wider than most, to tell answers that say no letter from wrong ones.
    """
    text = answer.strip()
    found = FIRST_LETTER.match(text.upper()) or ANSWER_IS.search(text.upper()) or LAST_LETTER.search(text)
    return found[1] if found else None


def gqa_llava(answer: str) -> str:
    """LLaVA's reading of GQA: the answer without stops at its end, in lower case, and nothing else."""
    return answer.rstrip(".").lower()


def _exactly(text: str) -> YesNo | None:
    return "yes" if text == "yes" else "no" if text == "no" else None


def _without_punctuation(text: str) -> str:
    """A mark beside a space vanishes, and so do all of its kind then; else each becomes a space. Then stops vanish."""
    for mark in MARKS:
        beside = f"{mark} " in text or f" {mark}" in text or NUMBER_WITH_COMMA.search(text)
        text = text.replace(mark, "" if beside else " ")
    return STOP.sub("", text)


@dataclass(frozen=True)
class Reading:
    """A harness's reading of yes-or-no answers.

    Attributes:
        harness: whose.
        read: what an answer says; None if it says neither.
        unread: what becomes of an answer that says neither, when F1 is computed: ``left out`` of precision and recall
            (accuracy counts it wrong), or ``no``.
    """

    harness: str
    read: Callable[[str], YesNo | None]
    unread: Literal["left out", "no"]


POPE_READINGS = (
    Reading("lmms_eval", yes_no_lmms_eval, "left out"),
    Reading("llava", yes_no_llava, "no"),
    Reading("vlmevalkit", yes_no_vlmevalkit, "no"),
)


def yes_no_f1(pairs: Iterable[tuple[str, str]], reading: Reading) -> float:
    """F1 of yes, in [0, 1], as POPE has it; 0 if no yes is right.

    Args:
        pairs: truth, which is ``yes`` or ``no``, and answer.
        reading: how answers are read.
    """
    said = [(truth, reading.read(answer)) for truth, answer in pairs]
    if reading.unread == "left out":
        said = [(truth, word) for truth, word in said if word is not None]
    right = sum(truth == "yes" and word == "yes" for truth, word in said)
    wrong = sum((truth == "yes") != (word == "yes") for truth, word in said)
    return 2 * right / (2 * right + wrong) if right else 0.0


def yes_ratio(answers: Iterable[str], read: Callable[[str], YesNo | None]) -> float:
    """Share of answers that say yes, among those that say yes or no; 0 if none does."""
    said = [word for word in map(read, answers) if word is not None]
    return said.count("yes") / len(said) if said else 0.0
