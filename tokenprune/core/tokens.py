"""What a pruner sees at one stage. Frozen, checked when made, and free of any model library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from tokenprune.core.errors import SelectionError
from tokenprune.core.quota import Quota
from tokenprune.core.signals import PairedText, Signal, parse


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What a pruner sees at one stage. Rows never influence one another.

    Attributes:
        features: (B, N, D) floating point, the visual tokens. A row is the unit of choice (an image, tile or frame).
        signals: by a ``Signal`` or its string, which may be plain; first dimension B. ``clip_text_embeds`` may be
            (M, C), then it is shared by all rows.
        grid: (height, width) with height * width = N if tokens are in raster order of an image, else None.
        place: (N, 3) long: tile or frame, line and column in it; None where it is not known.
        special: (N,) bool, tokens of the vision tower that no patch makes, such as CLS, which a stage before the
            projector has among the others: features of them, and 0 in signals. None if there are none.
        segment: (N,) long, the tile or frame of each token, from 0, if rows have several; else None.
        valid: (B, N) bool, False for padding; None if every token counts.
        row_ids: (B,) long, a number that stands for each row's content whatever batch it is in, so that a randomised
            method treats a sample alone as it treats it in a batch; or what makes it when a method asks for it, since
            hashing pixels takes time. None if there is none.
        labels: (B, N) long, what an earlier stage handed on about the tokens, see ``TokenSelection.labels``; -1 where
            it said nothing. None if no stage did.
        history: visual tokens of a row before each earlier stage, the first first; empty at the first stage.

    Raises:
        SelectionError: on wrong shapes, unknown signals or non-finite features.
    """

    features: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    valid: Tensor | None = None
    row_ids: Tensor | Callable[[], Tensor] | None = None
    place: Tensor | None = None
    segment: Tensor | None = None
    special: Tensor | None = None
    labels: Tensor | None = None
    history: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        f = self.features
        if f.dim() != 3 or not f.is_floating_point() or 0 in f.shape:
            raise SelectionError(
                f"features must be a non-empty floating (B, N, D) tensor, got {tuple(f.shape)} {f.dtype}"
            )
        if not bool(torch.stack(f.aminmax()).isfinite().all()):  # f.isfinite().all() reads and writes much more
            raise SelectionError("features hold values that are not finite")
        signals = {parse(name): value for name, value in self.signals.items()}
        given = Given({str(name): self._signal(str(name), value) for name, value in signals.items()})
        given.plain = {signal.plain: str(signal) for signal in signals if isinstance(signal, Signal)}
        object.__setattr__(self, "signals", given)
        if self.grid is not None and self.grid[0] * self.grid[1] != self.num_tokens:
            raise SelectionError(f"grid {self.grid} does not hold {self.num_tokens} visual tokens")
        if self.valid is not None and (self.valid.dtype != torch.bool or self.valid.shape != f.shape[:2]):
            raise SelectionError(
                f"valid must be a bool {tuple(f.shape[:2])} tensor, got {tuple(self.valid.shape)} {self.valid.dtype}"
            )
        for name, shape in (
            ("place", (self.num_tokens, 3)),
            ("segment", (self.num_tokens,)),
            ("special", (self.num_tokens,)),
        ):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise SelectionError(f"{name} must be a {shape} tensor, got {tuple(value.shape)}")
        if self.labels is not None and self.labels.shape != f.shape[:2]:
            raise SelectionError(f"labels must be {tuple(f.shape[:2])}, got {tuple(self.labels.shape)}")
        if isinstance(self.row_ids, Tensor) and self.row_ids.shape != f.shape[:1]:
            raise SelectionError(f"row_ids must be a ({self.batch_size},) tensor, got {tuple(self.row_ids.shape)}")

    def _signal(self, name: str, value: Tensor) -> Tensor:
        if name.startswith((PairedText.kind, PairedText.plain_names[0])) and value.dim() == 2:
            value = value.expand(self.batch_size, -1, -1)
        if value.shape[0] != self.batch_size:
            raise SelectionError(f"signal {name!r} has {value.shape[0]} rows, the features have {self.batch_size}")
        return value

    @property
    def batch_size(self) -> int:
        """Number of rows, B."""
        return self.features.shape[0]

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens in a row, N."""
        return self.features.shape[1]

    def quota(self, k: int) -> Quota:
        """How many tokens stay, to be shared out over the segments.

        Args:
            k: tokens of each row that stay.
        """
        sizes = [self.num_tokens] if self.segment is None else torch.bincount(self.segment).tolist()
        return Quota(k, tuple(sizes))

    @property
    def valid_or_all(self) -> Tensor:
        """Which tokens are valid, (B, N) bool: ``valid``, or True everywhere if it is None."""
        return self.features.new_ones(self.features.shape[:2], dtype=torch.bool) if self.valid is None else self.valid

    def content_ids(self) -> Tensor | None:
        """Numbers that stand for the content of rows, (B,) long: ``row_ids``, made if need be; None if not given."""
        return self.row_ids() if callable(self.row_ids) else self.row_ids

    def signal(self, signal: Signal) -> Tensor:
        """The tensor of a signal, given with these parameters or under its plain name; of several the first that was.

        Raises:
            SelectionError: if it was not given.
        """
        found = self.get(signal)
        if found is None:
            given = ", ".join(self.signals) or "none"
            raise SelectionError(f"signal {signal.plain!r} is needed but was not given (given: {given})")
        return found

    def given(self) -> list[Signal]:
        """The signals that were given with their parameters, not under plain names."""
        return [signal for name in self.signals if isinstance(signal := parse(name), Signal)]

    def get(self, signal: Signal) -> Tensor | None:
        """The tensor of a signal as ``signal`` finds it, or None if the signal was not given."""
        try:
            return self.signals[signal]  # type: ignore[index]
        except KeyError:
            return None


class Given(dict[str, Tensor]):
    """Tensors of the signals that were given, by the strings of the signals.

    A ``Signal`` finds itself there, what was given under its plain name, or the first of its alternatives; a plain name
    finds a signal of that name.
    """

    plain: Mapping[str, str] = MappingProxyType({})  # from plain names to the strings of those that were given

    def __missing__(self, key: object) -> Tensor:
        """What stands for a key that is not there."""
        alternatives = key.alternatives if isinstance(key, Signal) else ()
        names = [name for each in alternatives for name in (str(each), each.plain)]
        names += [self.plain[key]] if isinstance(key, str) and key in self.plain else []
        for name in names:
            if name in self:
                return self[name]
        raise KeyError(key)
