"""What a signal is: a value with parameters, written down as a string, with a shape by which costs are counted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError, hint
from tokenprune.core.sizes import ModelSpec

KINDS: dict[str, type[Signal]] = {}  # every kind of signal by its name
PLAIN: dict[str, None] = {}  # every plain name, in the order in which they were made known
WRITTEN = re.compile(r"(\w+)(?:\[(.*)\])?")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")  # as Python writes it
SHARED = 768  # width of the space that CLIP ViT-L/14's image and text share; sizes of a model do not say it


@dataclass(frozen=True)
class Signal:
    """Something that a pruner reads besides the visual tokens.

    A subclass is a frozen dataclass whose fields say which of its kind is meant. Who makes it is another matter, see
    ``engine.providers``.

    Attributes:
        plain_names: names that stand for it whatever its parameters are; its class's name in lower case with
            underscores if there are none. The dataclass picks the one that fits in ``plain``.
        shape: what its axes after the rows are, in words that ``Sizes.axis`` knows.
        fill: what it holds: any numbers, rows that add up to 1, or True.
        inside: whether it is of a stage inside the LLM; else it is of images and prompts before the LLM.
        of_prompts: whether it has a row for each prompt, where others have one for each visual token.
    """

    kind: ClassVar[str] = "signal"
    plain_names: ClassVar[tuple[str, ...]] = ()
    shape: ClassVar[str] = ""
    fill: ClassVar[Literal["numbers", "attention", "mask"]] = "numbers"
    inside: ClassVar[bool] = False
    of_prompts: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Make the kind known by its name."""
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        if "plain_names" not in cls.__dict__:
            cls.plain_names = (cls.kind,)
        KINDS[cls.kind] = cls
        PLAIN.update(dict.fromkeys(cls.plain_names))

    def __str__(self) -> str:
        parameters = [f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self)]
        return f"{self.kind}[{','.join(parameters)}]" if parameters else self.kind

    @property
    def plain(self) -> str:
        """The plain name that stands for the signal whatever its other parameters are."""
        return self.plain_names[0]

    @property
    def reads_layers(self) -> bool:
        """Whether the signal is made of hidden states in the vision tower, which models keep only if they are told."""
        return False

    @property
    def alternatives(self) -> tuple[Signal, ...]:
        """Signals that may be given for this one, the better first: itself alone, unless it is a ``OneOf``."""
        return (self,)

    def stand_in(self, sizes: Sizes) -> Tensor:
        """A tensor of the signal's shape, filled at random, so that the costs of reading it can be counted.

        Args:
            sizes: what the stage sees.

        Returns:
            (1, ...) for one row.
        """
        shape = [1, *(sizes.axis(axis, self) for axis in self.shape.split())]
        if self.fill == "mask":
            return torch.ones(shape, dtype=torch.bool)
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return numbers.softmax(-1) if self.fill == "attention" else numbers


@dataclass(frozen=True, init=False)
class OneOf(Signal):
    """The first of several signals that can be given.

    Attributes:
        signals: the better first.
    """

    plain_names: ClassVar[tuple[str, ...]] = ()
    signals: tuple[Signal, ...]

    def __init__(self, *signals: Signal) -> None:
        object.__setattr__(self, "signals", signals)

    @property
    def reads_layers(self) -> bool:
        """Whether an alternative is made of hidden states in the vision tower: which is given depends on the family."""
        return any(signal.reads_layers for signal in self.signals)

    @property
    def alternatives(self) -> tuple[Signal, ...]:
        """Signals of which the first that can be given is given."""
        return self.signals

    @property
    def plain(self) -> str:
        """Plain names of all alternatives, joined by ``or``."""
        return " or ".join(signal.plain for signal in self.signals)

    def __str__(self) -> str:
        return " or ".join(map(str, self.signals))

    def stand_in(self, sizes: Sizes) -> Tensor:
        """The stand-in of the first alternative, (1, ...)."""
        return self.signals[0].stand_in(sizes)


@dataclass(frozen=True)
class Sizes:
    """Sizes of what a stage sees.

    Attributes:
        spec: sizes of the model.
        tokens: visual tokens at the stage.
        entered: visual tokens that entered the LLM.
        text: other tokens of the prompt.
        channels: of another encoder's features; None for those of the vision tower.
    """

    spec: ModelSpec
    tokens: int
    entered: int
    text: int
    channels: int | None = None

    def axis(self, name: str, signal: Signal) -> int:
        """How long an axis of a signal is.

        Args:
            name: a number, or a word of ``Signal.shape`` such as ``tokens``.
            signal: whose axis it is; it says which text rows it is of.
        """
        llm, tower = self.spec.llm, self.spec.vision or self.spec.llm
        lengths: Mapping[str, int] = {
            "tokens": self.tokens,
            "entered": self.entered,
            "text": self.text,
            "rows": self.text if getattr(signal, "rows", "all") == "all" else 1,
            "heads": llm.heads,
            "keys": llm.kv_heads * llm.head_dim,
            "kv_heads": llm.kv_heads,
            "head_dim": llm.head_dim,
            "width": llm.width,
            "tower_heads": tower.heads,
            "tower_width": tower.width,
            "tower_head_dim": tower.head_dim,
            "shared": SHARED,
            "channels": self.channels or tower.width,
        }
        return int(name) if name.isdigit() else lengths[name]


def parse(name: str | Signal) -> Signal | str:
    """A signal from its string; a plain name, which stands for several, stays what it is.

    Args:
        name: a signal, a plain name, or a kind with some or all parameters, ``tower_attention[query=cls]``.

    Raises:
        SelectionError: if there is no such kind or parameter.
    """
    if isinstance(name, Signal) or name in PLAIN:
        return name
    found = WRITTEN.fullmatch(name)
    if found is None or found[1] not in KINDS:
        raise SelectionError(f"unknown signal {name!r}; {hint(name, PLAIN)}")
    kind, parameters = KINDS[found[1]], dict(part.split("=", 1) for part in (found[2] or "").split(",") if "=" in part)
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := parameters.keys() - known.keys():
        raise SelectionError(f"signal {name!r} has no parameter {min(unknown)!r}; {hint(min(unknown), known)}")
    return kind(**{key: _value(text) for key, text in parameters.items()})


def _value(text: str) -> Any:
    """A parameter as it was before it was written down."""
    if NUMBER.fullmatch(text):
        return float(text) if "." in text or "e" in text else int(text)
    return None if text == "None" else text


def plain_names(signals: Iterable[Signal]) -> str:
    """The plain names of signals, sorted, for a message."""
    return ", ".join(sorted(signal.plain for signal in signals))
