"""What pruners and adapters exchange. Frozen, checked when made, and free of any model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from tokenprune.errors import SelectionError, hint
from tokenprune.signal import LLM_SIGNALS, Signal
from tokenprune.spec import PRE_LLM, ModelSpec, Operation, OperationPlan, Operations, Stage, TransformerSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from tokenprune.budget import Budget

__all__ = [
    "LLM_SIGNALS",
    "PRE_LLM",
    "ModelSpec",
    "Operation",
    "OperationPlan",
    "Operations",
    "Positions",
    "Sample",
    "Selector",
    "Signal",
    "Stage",
    "Step",
    "TokenSelection",
    "TransformerSpec",
    "VisualTokens",
]

Positions = Literal["original", "repacked"]
TextRows = Literal["last", "all"]
ScoringLayer = Literal["previous", "own"]


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What a pruner sees at one stage. Rows never influence one another.

    Attributes:
        features: (B, N, D) floating point, the visual tokens. A row is the unit of choice (an image, tile or frame).
        signals: by name, see ``Signal``; first dimension B. Plain strings serve as keys. ``clip_text_embeds`` may be
            (M, C), then it is shared by all rows.
        grid: (height, width) with height * width = N if tokens are in raster order of an image, else None.
        valid: (B, N) bool, False for padding; None if every token counts.
        row_ids: (B,) long, a number that stands for each row's content whatever batch it is in (an adapter hashes the
            pixels), so that a randomised method treats a sample alone as it treats it in a batch.

    Raises:
        SelectionError: on wrong shapes, unknown signals or non-finite features.
    """

    features: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    valid: Tensor | None = None
    row_ids: Tensor | None = None

    def __post_init__(self) -> None:
        f = self.features
        if f.dim() != 3 or not f.is_floating_point() or 0 in f.shape:
            raise SelectionError(
                f"features must be a non-empty floating (B, N, D) tensor, got {tuple(f.shape)} {f.dtype}"
            )
        if not bool(torch.stack(f.aminmax()).isfinite().all()):  # f.isfinite().all() reads and writes much more
            raise SelectionError("features hold values that are not finite")
        object.__setattr__(self, "signals", {name: self._signal(name, value) for name, value in self.signals.items()})
        if self.grid is not None and self.grid[0] * self.grid[1] != self.num_tokens:
            raise SelectionError(f"grid {self.grid} does not hold {self.num_tokens} visual tokens")
        if self.valid is not None and (self.valid.dtype != torch.bool or self.valid.shape != f.shape[:2]):
            raise SelectionError(
                f"valid must be a bool {tuple(f.shape[:2])} tensor, got {tuple(self.valid.shape)} {self.valid.dtype}"
            )
        if self.row_ids is not None and self.row_ids.shape != f.shape[:1]:
            raise SelectionError(f"row_ids must be a ({self.batch_size},) tensor, got {tuple(self.row_ids.shape)}")

    def _signal(self, name: str, value: Tensor) -> Tensor:
        if name not in set(Signal):
            raise SelectionError(f"unknown signal {str(name)!r}; {hint(name, [s.value for s in Signal])}")
        if name == Signal.CLIP_TEXT_EMBEDS and value.dim() == 2:
            value = value.expand(self.batch_size, -1, -1)
        if value.shape[0] != self.batch_size:
            raise SelectionError(f"signal {str(name)!r} has {value.shape[0]} rows, the features have {self.batch_size}")
        return value

    @property
    def batch_size(self) -> int:
        """B, rows."""
        return self.features.shape[0]

    @property
    def num_tokens(self) -> int:
        """N, visual tokens a row."""
        return self.features.shape[1]

    @property
    def valid_or_all(self) -> Tensor:
        """(B, N) bool: ``valid``, or True everywhere if it is None."""
        return self.features.new_ones(self.features.shape[:2], dtype=torch.bool) if self.valid is None else self.valid

    def signal(self, name: Signal) -> Tensor:
        """One signal.

        Raises:
            SelectionError: if it was not given.
        """
        if name not in self.signals:
            given = ", ".join(map(str, self.signals)) or "none"
            raise SelectionError(f"signal {name.value!r} is needed but was not given (given: {given})")
        return self.signals[name]


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """What a pruner decides at one stage. Unsorted or repeated indices cannot be expressed.

    Attributes:
        keep: (B, K) long, strictly increasing in each row.
        num_tokens: N, visual tokens before; K = N is the identity.
        scores: (B, N), higher stays, of methods that score.
        order: (B, K) long, the same indices in the order in which a greedy method picked them.
        merged: (B, K + M, D) new features of the kept tokens, of methods that merge others into them, followed by
            those of M tokens that the method appends, in their order.

    Raises:
        SelectionError: if ``keep`` is out of range or not strictly increasing, or shapes disagree.
    """

    keep: Tensor
    num_tokens: int
    scores: Tensor | None = None
    order: Tensor | None = None
    merged: Tensor | None = None

    def __post_init__(self) -> None:
        keep = self.keep
        if keep.dim() != 2 or keep.dtype != torch.long or 0 in keep.shape:
            raise SelectionError(f"keep must be a non-empty (B, K) long tensor, got {tuple(keep.shape)} {keep.dtype}")
        increasing = bool((keep[:, 1:] > keep[:, :-1]).all())
        if not increasing or int(keep[:, 0].min()) < 0 or int(keep[:, -1].max()) >= self.num_tokens:
            raise SelectionError(f"keep must be strictly increasing within [0, {self.num_tokens})")
        if self.scores is not None and self.scores.shape != (len(keep), self.num_tokens):
            raise SelectionError(f"scores must be {(len(keep), self.num_tokens)}, got {tuple(self.scores.shape)}")
        if self.order is not None and not torch.equal(self.order.sort(1).values, keep):
            raise SelectionError("order must hold the kept indices")
        if self.merged is not None and (len(self.merged) != len(keep) or self.merged.shape[1] < keep.shape[1]):
            raise SelectionError(
                f"merged must be (B, K or more, D) with (B, K) = {tuple(keep.shape)}, got {tuple(self.merged.shape)}"
            )

    @classmethod
    def from_order(cls, order: Tensor, num_tokens: int, scores: Tensor | None = None) -> TokenSelection:
        """The selection of a greedy method from its picks, (B, K) in the order in which they were made."""
        return cls(order.sort(1).values, num_tokens, scores=scores, order=order)

    def without_features(self) -> TokenSelection:
        """The same choice, without the features that the method made."""
        return self if self.merged is None else replace(self, merged=None)


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    Attributes:
        id: unique within the task.
        image: RGB.
        question: as asked, without an answer-format suffix.
        answer: the truth.
        kind: type of the question, for per-type accuracy.
        boxes: (x0, y0, x1, y1) in pixels, ends excluded, of what the question is about; empty if unknown or nothing.
        other_question: one that is not asked, for controls; empty if there is none.
        earlier: (question, answer) of the turns about this image that came before.
        place: where it is written, for messages, such as a file and its line; empty if nowhere.
    """

    id: str
    image: Image
    question: str
    answer: str
    kind: str = ""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    other_question: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Step:
    """One selection of a pruner.

    Attributes:
        stage: where.
        selector: what selects there: the pruner itself, or a member of a composition.
    """

    stage: Stage
    selector: Selector


class Selector(Protocol):
    """What an adapter needs of a pruner; ``tokenprune.pruners.base.Pruner`` is the real thing and explains it."""

    text_rows: ClassVar[TextRows]
    scoring_layer: ClassVar[ScoringLayer]

    @property
    def positions(self) -> Positions:
        """Position ids of the tokens that stay."""

    @property
    def requires(self) -> frozenset[Signal]:
        """Signals without which it cannot select."""

    @property
    def budget(self) -> Budget | None:
        """The budget that its options fix, if they do."""

    @property
    def adaptive(self) -> bool:
        """Whether the content of a row decides how many of its tokens stay."""

    def appended(self, dropped: int) -> int:
        """How many tokens a stage appends that drops so many."""

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Where tokens leave, in the order of the layers, and what selects there."""

    def schedule(self, spec: ModelSpec, budget: Budget, total: int) -> tuple[int, ...]:
        """How many of ``total`` visual tokens each step selects."""

    def operations(self, spec: ModelSpec) -> Operations | None:
        """Which operations run for the tokens that are there; None for all."""

    def select(self, tokens: VisualTokens, k: int) -> TokenSelection:
        """Which ``k`` tokens of each row stay."""
