"""What each visual token of a scene shows, in words, and how far projected patches are from saying it."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenprune.embedded.questions import article
from tokenprune.embedded.scenes import COLORS, GRID, LETTERS, PATCH_SIZE, SHAPES, Layout, object_tokens
from tokenprune.embedded.tokenizer import VOCABULARY

TOKENS = GRID * GRID
WORD_GROUPS = {  # what the projector is asked to tell apart, and the words that say it
    "color": (*COLORS, "nothing"),
    "shape": (*SHAPES, "nothing"),
    "row": ("top", "bottom"),
    "column": ("left", "right"),
    "letter": tuple(LETTERS.lower()),
    "center": ("thing",),
}


def describe_tokens(layout: Layout) -> list[list[str]]:
    """The words that describe each visual token: ``TOKENS`` lists, in raster order."""
    owner = object_tokens(layout)
    words: list[list[str]] = []
    for index in range(TOKENS):
        row, column = divmod(index, GRID)
        if owner[index] < 0:
            words.append(["nothing"])
            continue
        thing = layout[owner[index]]
        x, y = thing.center
        own = [thing.color, thing.shape, *thing.region.replace("center", "").split()]
        if x // PATCH_SIZE == column and y // PATCH_SIZE == row:
            own.append("thing")
        off = max(abs(column * PATCH_SIZE + PATCH_SIZE / 2 - x), abs(row * PATCH_SIZE + PATCH_SIZE / 2 - y))
        if thing.letter and off <= 7:
            own.append(thing.letter.lower())
        words.append(own)
    return words


def multi_hot(words: list[list[str]]) -> Tensor:
    """(len(words), vocabulary) float, 1 where a word describes a token; times the word embeddings: a symbolic token."""
    hot = torch.zeros(len(words), len(VOCABULARY))
    for index, names in enumerate(words):
        hot[index, [VOCABULARY[name] for name in names]] = 1.0
    return hot


def caption(layout: Layout, rng: random.Random) -> str:
    """An English list of the objects, in random order."""
    names = [f"{article(o.color)} {o.color} {o.shape}" + (f" with {o.letter}" if o.letter else "") for o in layout]
    rng.shuffle(names)
    return " and ".join(names)


def align_loss(projected: Tensor, hot: Tensor, embedding: Tensor) -> tuple[Tensor, dict[str, float]]:
    """How far projected patches are from the words that describe them.

    Args:
        projected: (B, N, D).
        hot: (B, N, vocabulary) of ``multi_hot``.
        embedding: (vocabulary, D) word embeddings.

    Returns:
        Loss, and the accuracy per group of words.
    """
    norm = embedding.pow(2).sum(-1).mean()
    logits = (projected @ embedding.T).float() / norm  # about 1 for a word that is there, 0 for another
    wanted = hot @ embedding
    thing = hot[..., VOCABULARY["nothing"]] == 0
    error = (projected.float() - wanted).pow(2).sum(-1) / norm
    loss = error[thing].mean() + 0.3 * error[~thing].mean()
    accuracy = {}
    for name, group in WORD_GROUPS.items():
        at = [VOCABULARY[word] for word in group]
        truth, guess = hot[..., at], logits[..., at]
        asked = truth.sum(-1) > 0
        if len(group) == 1:
            loss = loss + F.binary_cross_entropy_with_logits(8 * (guess - 0.5)[thing], truth[thing])
            accuracy[name] = ((guess > 0.5) == (truth > 0))[thing].float().mean().item()
            continue
        if asked.any():
            loss = loss + F.cross_entropy(5 * guess[asked], truth[asked].argmax(-1)) * (
                2.0 if name == "letter" else 1.0
            )
            accuracy[name] = (guess.argmax(-1) == truth.argmax(-1))[asked & thing].float().mean().item()
    return loss, accuracy


def shown_tokens(hot: Tensor, progress: float) -> Tensor:
    """Which symbolic tokens the language stage shows, (n,) raster indices.

    Binding is found soon among few tokens and hardly among many: the first 40 % of the stage show one token an object,
    the next 20 % about half of them, the rest all; background tokens grow from 4 to 48.

    Args:
        hot: (N, vocabulary) of ``multi_hot``.
        progress: share of the stage that is over, in [0, 1].
    """
    center, blank = (hot[:, VOCABULARY[word]] > 0 for word in ("thing", "nothing"))
    share = 0.0 if progress < 0.4 else 0.5 if progress < 0.6 else 1.0
    show = center | (~blank & (torch.rand(len(hot)) < share))
    background = blank.nonzero().flatten()
    show[background[torch.randperm(len(background))[: 4 + int(44 * progress)]]] = True
    return show.nonzero().flatten()
