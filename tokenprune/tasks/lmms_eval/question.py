"""What is asked in a prompt: its text without how the answer should look, for relevance to be measured against."""

from __future__ import annotations

import re

# Sentences on the answer's form that lmms-eval's prompts end with, once each or several in a row.
ENDING = re.compile(
    r"\s*(?:"
    r"(?:Please )?[Aa]nswer (?:the question )?(?:using|with|directly|yes|Yes)[^\n]*"
    r"|Only give the best option\.?(?:\nBest option: \()?"
    r"|When the provided information is insufficient[^\n]*"
    r"|Respond with only the letter[^\n]*"
    r"|(?:Please )?[Ss]elect the correct answer from the options above\.?"
    r"|The best answer is:"
    r"|Answer:"
    r")\s*\Z"
)
BEGINNING = re.compile(
    r"\A(?:Select the best answer to the following multiple-choice question[^\n]*\n"
    r"|Context: N/A\n|Context: |Question:\s*)"
)
WITHIN = re.compile(r"^(?:Question: |Options:\s*\n?|Option:\s*\n)|<image \d+>\s*", re.MULTILINE)


def question_of(text: str, post_prompt: str = "") -> str:
    """The question in a prompt, with its hint and options, or the whole prompt if nothing else is in it.

    Args:
        text: all text of the prompt.
        post_prompt: what is known to stand behind the question.
    """
    question = text.removesuffix(post_prompt) if post_prompt else text
    question = BEGINNING.sub("", question)
    while (shorter := ENDING.sub("", question)) != question:
        question = shorter
    return WITHIN.sub("", question).strip() or text.strip()
