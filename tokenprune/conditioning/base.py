"""Where relevance comes from: the base class of conditionings, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenprune.core.errors import SelectionError
from tokenprune.core.registry import Registry
from tokenprune.core.signals import Signal
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen

Scope = Literal["row", "batch"]
TextTower = Literal["clip", "open_clip"]


@dataclass(frozen=True)
class Conditioning(ABC):
    """A source of relevance to the prompt.

    Attributes:
        requires: signals that it reads.
        sign: +1 if a token is the more relevant the larger the value, -1 if the smaller; a pruner may override it.
        text_tower: library of the text tower that must be paired with the vision tower, or None if none is needed.
    """

    requires: ClassVar[frozenset[Signal]] = frozenset()
    sign: ClassVar[int] = 1
    text_tower: ClassVar[TextTower | None] = None

    def relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        """Relevance as the source gives it, before sign and scaling.

        Args:
            tokens: with the signals that are required.
            scope: ``row``: each row is compared with its own prompt; ``batch``: with the prompts of all rows.

        Returns:
            (B, N) at least float32; finite wherever a token is valid.

        Raises:
            SelectionError: if a signal is missing, has a shape that does not fit, or is not finite.
        """
        relevance = self._relevance(tokens, scope)
        finite = relevance.isfinite()
        if not bool((finite if tokens.valid is None else finite | ~tokens.valid).all()):
            names = ", ".join(sorted(self.requires))
            raise SelectionError(f"relevance is not finite; check the values of the signals {names}")
        return relevance

    @abstractmethod
    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        """(B, N)."""


def per_token(tokens: VisualTokens, name: Signal) -> Tensor:
    """A signal (B, N, C) that has one vector for each visual token.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(name)
    if value.dim() != 3 or value.shape[1] != tokens.num_tokens:
        raise SelectionError(f"signal {name.value!r} must be (B, {tokens.num_tokens}, C), got {tuple(value.shape)}")
    return value


def text_vectors(tokens: VisualTokens, name: Signal, width: int) -> Tensor:
    """A signal (B, M, C) of text vectors in a space of C = ``width`` numbers.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(name)
    if value.dim() != 3 or value.shape[1] == 0 or value.shape[2] != width:
        raise SelectionError(f"signal {name.value!r} must be (B, M, {width}) with M > 0, got {tuple(value.shape)}")
    return value


def over_heads(tokens: VisualTokens, name: Signal) -> Tensor:
    """(B, N) the mean over heads of a signal (B, H, N), widened.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(name)
    if value.dim() != 3 or value.shape[1] == 0 or value.shape[2] != tokens.num_tokens:
        raise SelectionError(f"signal {name.value!r} must be (B, H, {tokens.num_tokens}), got {tuple(value.shape)}")
    return widen(value).mean(1)


CONDITIONINGS: Registry[Conditioning] = Registry("conditioning", package="tokenprune.conditioning", group=None)
