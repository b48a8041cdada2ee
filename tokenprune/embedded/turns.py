"""Several questions about one image in one sequence, each blind to the others, and the loss of their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from tokenprune.embedded.questions import Question
from tokenprune.embedded.symbols import TOKENS
from tokenprune.embedded.tokenizer import VOCABULARY

PREFIX = ("<s>", "USER:")


@dataclass
class Turns:
    """Questions of a batch packed behind the visual tokens, blind to one another.

    Attributes:
        ids: (B, L) token ids.
        positions: (B, L) each question starts where the visual tokens end.
        block: (B, L) number of the question, -1 for padding.
        answers: (B, L) bool, tokens that are to be predicted.
    """

    ids: Tensor
    positions: Tensor
    block: Tensor
    answers: Tensor
    kinds: list[list[str]]


def pack(batch: list[list[Question]], encode: Callable[[str], list[int]]) -> Turns:
    """Tokenise and pack the questions of each scene."""
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    for questions in batch:
        row: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        for number, question in enumerate(questions):
            ask = [*encode(question.text), VOCABULARY["ASSISTANT:"]]
            reply = [*encode(question.answer), VOCABULARY["</s>"]]
            start, length = len(PREFIX) + TOKENS, len(ask) + len(reply)
            row[0].extend(ask + reply)
            row[1].extend(range(start, start + length))
            row[2].extend([number] * length)
            row[3].extend([0] * len(ask) + [1] * len(reply))
        rows.append(row)
    width = max(len(row[0]) for row in rows)
    ids, positions, block, answers = (
        torch.tensor([row[i] + [fill] * (width - len(row[i])) for row in rows])
        for i, fill in enumerate((VOCABULARY["<pad>"], 0, -1, 0))
    )
    return Turns(ids, positions, block, answers.bool(), [[q.type for q in questions] for questions in batch])


def language_loss(
    model: LlavaForConditionalGeneration, visual: Tensor, at: Tensor, turns: Turns
) -> tuple[Tensor, dict[str, list[bool]]]:
    """Cross-entropy of the answers to packed questions.

    Args:
        model: the MLLM.
        visual: (B, N, D) visual tokens.
        at: (B, N) raster index of each, -1 for padding.
        turns: the questions.

    Returns:
        The loss, and for each question type whether each answer was right.
    """
    embed = model.get_input_embeddings()
    batch, number = at.shape
    lead = len(PREFIX) + number
    prefix = embed(torch.tensor([VOCABULARY[t] for t in PREFIX])).expand(batch, -1, -1)
    hidden = torch.cat([prefix, visual, embed(turns.ids)], 1)
    positions = torch.cat(
        [torch.arange(len(PREFIX)).expand(batch, -1), at.clamp(min=0) + len(PREFIX), turns.positions], 1
    )
    shared = torch.cat([torch.ones(batch, len(PREFIX), dtype=torch.bool), at >= 0], 1)
    block = torch.cat([torch.full((batch, lead), -2), turns.block], 1)
    seen = torch.cat([shared, turns.block >= 0], 1)
    length = hidden.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & seen[:, None]
    mask &= (block[:, None] == -2) | (block[:, None] == block[:, :, None])
    mask |= torch.eye(length, dtype=torch.bool)  # padding sees itself, so that its softmax is defined
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)  # eager attention adds masks
    out = model.model.language_model(
        inputs_embeds=hidden, position_ids=positions, attention_mask=additive[:, None], use_cache=False
    )
    target = turns.ids[:, 1:][turns.answers[:, 1:]]
    logits = model.lm_head(out.last_hidden_state[:, lead:-1][turns.answers[:, 1:]]).float()
    hit = torch.zeros(turns.ids.shape, dtype=torch.bool)
    hit[:, 1:][turns.answers[:, 1:]] = logits.argmax(-1) == target
    right: dict[str, list[bool]] = {}
    for row, kinds in enumerate(turns.kinds):
        for number_, kind in enumerate(kinds):
            tokens = turns.answers[row] & (turns.block[row] == number_)
            right.setdefault(kind, []).append(bool(hit[row][tokens].all()))
    return F.cross_entropy(logits, target), right
