"""Signals of a stage inside the LLM.

Q text rows follow the last visual token: all of that text, or the last token of the prompt alone. Padding comes first;
the last row is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenprune.core.signals.base import Signal

TextRows = Literal["last", "all"]
ScoringLayer = Literal["previous", "own"]


@dataclass(frozen=True)
class Scored(Signal):
    """A signal of the attention of one decoder layer.

    Attributes:
        layer: the one before the stage, as it ran, or the stage's own, as it would run on all tokens.
    """

    plain_names: ClassVar[tuple[str, ...]] = ()
    inside: ClassVar[bool] = True
    layer: ScoringLayer = "previous"

    @property
    def all_rows(self) -> bool:
        """Whether the signal is of all text rows, and not of the last alone."""
        return getattr(self, "rows", "all") == "all"


@dataclass(frozen=True)
class TextAttention(Scored):
    """(B, H, Q, N) attention probabilities of text rows to visual tokens.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "heads rows tokens"
    fill: ClassVar[Literal["attention"]] = "attention"
    rows: TextRows = "last"


@dataclass(frozen=True)
class Keys(Scored):
    """(B, N, C) rotated keys of the visual tokens, heads side by side."""

    shape: ClassVar[str] = "tokens keys"


@dataclass(frozen=True)
class HeadKeys(Scored):
    """(B, G, N, d) rotated keys of the visual tokens, of each key-value head."""

    plain_names: ClassVar[tuple[str, ...]] = ("head_keys",)
    shape: ClassVar[str] = "kv_heads tokens head_dim"


@dataclass(frozen=True)
class TextKeys(Scored):
    """(B, Q, C) rotated keys of text rows, heads side by side.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "rows keys"
    rows: TextRows = "last"


@dataclass(frozen=True)
class RopeSimilarity(Scored):
    """(B, Q, N) scaled dot product of rotated queries and keys that are all ones: what positions alone do to a score.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "rows tokens"
    rows: TextRows = "last"


@dataclass(frozen=True)
class TextMask(Signal):
    """(B, Q) bool, False for padding of text rows.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "rows"
    fill: ClassVar[Literal["mask"]] = "mask"
    inside: ClassVar[bool] = True
    rows: TextRows = "last"


@dataclass(frozen=True)
class TextEmbeds(Signal):
    """(B, Q, D) the LLM's input embeddings of text rows.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "rows width"
    inside: ClassVar[bool] = True
    rows: TextRows = "last"


@dataclass(frozen=True)
class ImageEmbeds(Signal):
    """(B, M, D) the LLM's input embeddings of all visual tokens that entered it, M >= N."""

    shape: ClassVar[str] = "entered width"
    inside: ClassVar[bool] = True


@dataclass(frozen=True)
class NormedHidden(Signal):
    """(B, N, D) hidden states of the visual tokens after the LLM's final norm."""

    shape: ClassVar[str] = "tokens width"
    inside: ClassVar[bool] = True


@dataclass(frozen=True)
class TextNormedHidden(Signal):
    """(B, Q, D) hidden states of text rows after the LLM's final norm.

    Attributes:
        rows: which text.
    """

    shape: ClassVar[str] = "rows width"
    inside: ClassVar[bool] = True
    rows: TextRows = "last"
