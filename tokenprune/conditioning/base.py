"""Where relevance comes from: the base class of conditionings, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from torch import Tensor

from tokenprune.core.errors import ConfigError, SelectionError, hint
from tokenprune.core.options import construct
from tokenprune.core.registry import Registry
from tokenprune.core.signals import Question, Signal, plain_names
from tokenprune.core.tokens import VisualTokens
from tokenprune.functional.vectors import widen

Scope = Literal["row", "batch"]


@dataclass(frozen=True)
class Conditioning(ABC):
    """A source of relevance to the prompt.

    Attributes:
        sign: +1 if a token is the more relevant the larger the value, -1 if the smaller; a pruner may override it.
    """

    sign: ClassVar[int] = 1

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals that the conditioning reads; none unless overridden."""
        return frozenset()

    def sign_for(self, tokens: VisualTokens) -> int:
        """The sign of what is made of these tokens' signals."""
        return self.sign

    def relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        """Relevance of each token as the source gives it, before sign and scaling.

        Args:
            tokens: the visual tokens of a stage, with the signals that are required.
            scope: ``row``: each row is compared with its own prompt; ``batch``: with the prompts of all rows.

        Returns:
            (B, N) at least float32; finite wherever a token is valid.

        Raises:
            SelectionError: if a signal is missing, has a shape that does not fit, or is not finite.
        """
        relevance = self._relevance(tokens, scope)
        finite = relevance.isfinite()
        if not bool((finite if tokens.valid is None else finite | ~tokens.valid).all()):
            names = plain_names(self.requires)
            raise SelectionError(f"relevance is not finite; check the values of the signals {names}")
        return relevance

    @abstractmethod
    def _relevance(self, tokens: VisualTokens, scope: Scope) -> Tensor:
        """Relevance of each token, (B, N), which ``relevance`` then checks."""


def check_question(value: object) -> None:
    """Refuse a value of the option ``question`` that is neither ``own`` nor ``other``.

    Raises:
        ConfigError: if it is another.
    """
    if value not in get_args(Question):
        raise ConfigError(f"option 'question' is {value!r}; {hint(str(value), get_args(Question))}")


def per_token(tokens: VisualTokens, signal: Signal) -> Tensor:
    """The tensor (B, N, C) of a signal that has one vector for each visual token.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(signal)
    if value.dim() != 3 or value.shape[1] != tokens.num_tokens:
        raise SelectionError(f"signal {signal.plain!r} must be (B, {tokens.num_tokens}, C), got {tuple(value.shape)}")
    return value


def text_vectors(tokens: VisualTokens, signal: Signal, width: int) -> Tensor:
    """The tensor (B, M, C) of a signal of text vectors in a space of C = ``width`` numbers.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(signal)
    if value.dim() != 3 or value.shape[1] == 0 or value.shape[2] != width:
        raise SelectionError(f"signal {signal.plain!r} must be (B, M, {width}) with M > 0, got {tuple(value.shape)}")
    return value


def over_heads(tokens: VisualTokens, signal: Signal) -> Tensor:
    """The mean over heads (B, N) of a signal (B, H, N), widened.

    Raises:
        SelectionError: if it is missing or has another shape.
    """
    value = tokens.signal(signal)
    if value.dim() != 3 or value.shape[1] == 0 or value.shape[2] != tokens.num_tokens:
        raise SelectionError(f"signal {signal.plain!r} must be (B, H, {tokens.num_tokens}), got {tuple(value.shape)}")
    return widen(value).mean(1)


C = TypeVar("C", bound=Conditioning)
CONDITIONINGS: Registry[Conditioning] = Registry(
    "conditioning", package="tokenprune.conditioning", group="tokenprune.conditioning"
)


def register_conditioning(name: str, *, paper: str | None = None) -> Callable[[type[C]], type[C]]:
    """Class decorator that makes a conditioning known: ``conditioning: <name>`` of CDPruner.

    Args:
        name: public name; also that of its file.
        paper: URL of the paper.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return cast(Callable[[type[C]], type[C]], CONDITIONINGS.register(name, paper=paper))


def make_conditioning(given: str | Mapping[str, Any]) -> Conditioning:
    """A conditioning from its name, or from a mapping of name and options.

    Raises:
        ConfigError: if there is no such conditioning or option.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if name not in CONDITIONINGS.names():
        raise ConfigError(f"option 'conditioning' is {name!r}; {hint(str(name), CONDITIONINGS.names())}")
    return construct(CONDITIONINGS.get(name), options, f"conditioning {name!r}")
