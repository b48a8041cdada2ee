"""In whose space a pruner measures how alike tokens are: the visual tokens' own, or that of another encoder.

No paper of the methods here does the latter; it is ours.
"""

from __future__ import annotations

from torch import Tensor

from tokenprune.core.errors import ConfigError
from tokenprune.core.signals import Encoder, Signal
from tokenprune.core.tokens import VisualTokens

OWN, TIMM = "own", "timm:"


def check_space(value: str) -> None:
    """Refuse a value of the option ``features`` that names no space.

    Raises:
        ConfigError: says what is allowed.
    """
    if value != OWN and not (value.startswith(TIMM) and value.removeprefix(TIMM)):
        raise ConfigError(
            f"option 'features' is {value!r}; allowed: {OWN}, or {TIMM}<model> for a vision model of timm"
        )


def space_signals(value: str) -> frozenset[Signal]:
    """Signals that a space needs besides the visual tokens."""
    return frozenset() if value == OWN else frozenset({Encoder(value)})


def in_space(tokens: VisualTokens, value: str) -> Tensor:
    """The visual tokens in a space, (B, N, C).

    Raises:
        SelectionError: if the other encoder's features were not given.
    """
    return tokens.features if value == OWN else tokens.signal(Encoder(value))
