"""A latency model: milliseconds of a decoder layer's attention and MLP, fitted to timings at several token counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from tokenprune.core.errors import ConfigError


class AttentionTiming(NamedTuple):
    """One timing of a layer's attention: its norm, projections and kernel.

    Attributes:
        sources: tokens that give keys and values, text included.
        receivers: tokens that ask and receive, text included.
        milliseconds: measured.
    """

    sources: int
    receivers: int
    milliseconds: float


class MlpTiming(NamedTuple):
    """One timing of a layer's MLP with its norm.

    Attributes:
        tokens: that pass it, text included.
        milliseconds: measured.
    """

    tokens: int
    milliseconds: float


@dataclass(frozen=True)
class LatencyModel:
    """A latency model: milliseconds of one decoder layer. No coefficient is negative, so more tokens never cost less.

    Attributes:
        attention: milliseconds per call, per source, per receiver, and per pair of both.
        mlp: milliseconds per call and per token.

    Raises:
        ConfigError: if a coefficient is negative, not finite or missing.
    """

    attention: tuple[float, ...]
    mlp: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, number in {"attention": 4, "mlp": 2}.items():
            given = getattr(self, name)
            if len(given) != number or not all(math.isfinite(value) and value >= 0 for value in given):
                raise ConfigError(f"{name} must be {number} numbers of at least 0, got {list(given)}")

    @classmethod
    def fit(cls, attention: Sequence[AttentionTiming], mlp: Sequence[MlpTiming]) -> LatencyModel:
        """The latency model with least squares of the relative errors, so that short and long prompts count alike.

        Args:
            attention: at least four, whose sources and receivers vary apart.
            mlp: at least two different numbers of tokens.

        Raises:
            ConfigError: if a timing is not positive, or there are too few to tell the coefficients apart.
        """
        return cls(
            _fit("attention", [_attention_terms(t.sources, t.receivers) for t in attention], attention),
            _fit("mlp", [_mlp_terms(t.tokens) for t in mlp], mlp),
        )

    def attention_milliseconds(self, sources: int, receivers: int) -> float:
        """Milliseconds of one layer's attention; numbers of tokens include text."""
        return _sum_of_products(self.attention, _attention_terms(sources, receivers))

    def mlp_milliseconds(self, tokens: int) -> float:
        """Milliseconds of one layer's MLP; the number of tokens includes text."""
        return _sum_of_products(self.mlp, _mlp_terms(tokens))


def _attention_terms(sources: int, receivers: int) -> tuple[int, ...]:
    return 1, sources, receivers, sources * receivers


def _mlp_terms(tokens: int) -> tuple[int, ...]:
    return 1, tokens


def _sum_of_products(coefficients: Sequence[float], terms: Sequence[int]) -> float:
    return sum(a * b for a, b in zip(coefficients, terms, strict=True))


def _fit(name: str, terms: ArrayLike, timings: Sequence[AttentionTiming] | Sequence[MlpTiming]) -> tuple[float, ...]:
    measured = np.array([timing.milliseconds for timing in timings])
    if not all(math.isfinite(value) and value > 0 for value in measured):
        raise ConfigError(f"latency: a timing of the {name} is not a positive number of milliseconds")
    design = np.array(terms, dtype=float)
    if not len(measured) or np.linalg.matrix_rank(design / design.max(0)) < design.shape[1]:
        raise ConfigError(
            f"latency: {len(measured)} timings of the {name} do not tell its coefficients apart; "
            "time it at more numbers of tokens, and attention also with fewer receivers than sources"
        )
    relative = design / measured[:, None]
    scale = relative.max(0)  # columns of one size, for the sake of the solver
    solution, _ = nnls(relative / scale, np.ones(len(measured)))
    return tuple((solution / scale).tolist())
