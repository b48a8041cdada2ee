"""Results of a study that nobody measured: policies whose divergence and answers are known by formula."""

import numpy as np
from study.results import Header, Row

LAYERS, TOTAL = 3, 8
ATTENTION = {1: 0.9, 2: 0.3, 3: 0.0}
MLP = {0: 0.2, 1: 0.05, 2: 0.0}
TOKENS = {2: 0.7, 4: 0.4, 8: 0.0}
KINDS = ("color", "count")
HEADER = Header(LAYERS, TOTAL, 5, {2: 34.0, 4: 55.0}, KINDS * 10, KINDS * 15)


def flops(attention, mlp, tokens):
    return float(5 * LAYERS + tokens * (2 * attention + mlp))


def additive(attention, mlp, tokens):
    """What is left out adds up, and an MLP that is dead without attention costs nothing."""
    return ATTENTION[attention] + MLP[mlp] - MLP[attention - 1] + TOKENS[tokens]


def row(attention, mlp, tokens, divergence, right, base="near", **changes):
    """A depth-wise policy: the same divergence for every question, or one for each."""
    active = np.arange(LAYERS)[:, None] < np.array([attention, attention - 1, mlp])
    values = {
        "set": "depth_wise",
        "base": base,
        "tokens": tokens,
        "active": active,
        "flops": flops(attention, mlp, tokens),
        "attention": attention,
        "mlp": mlp,
        "first_token": np.broadcast_to(divergence, 20).astype(float),
        "teacher_forced": np.broadcast_to(divergence, 20) / 2,
        "same": np.ones(20, bool),
        "test_first_token": np.broadcast_to(np.mean(divergence), 30).astype(float),
        "right": np.broadcast_to(right, 30).astype(bool),
    }
    return Row(**values | changes)


def sizes(tokens=tuple(TOKENS)):
    return [(a, m, n) for n in tokens for a in range(1, LAYERS + 1) for m in range(a)]


def rows(divergence=additive, right=None, base="near", tokens=tuple(TOKENS)):
    """A whole grid; the more it diverges, the fewer answers are right, unless ``right`` says which."""
    made = []
    for size in sizes(tokens):
        loss = divergence(*size)
        answers = np.arange(30) >= round(10 * float(np.mean(loss))) if right is None else right(*size)
        made.append(row(*size, loss, answers, base))
    return made
