"""What ``tokenprune.prune`` reports about the calls in its block."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.core.errors import TokenPruneError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.stages import Stage
from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.prompt.shorten import PrunedInputs


@dataclass(frozen=True, eq=False)
class StageTrace:
    """What went on from one stage.

    Attributes:
        stage: where.
        keep: visual tokens of each batch row, by their number among all of the row's, ascending.
        counts: visual tokens of each batch row, with those that the pruner appended.
    """

    stage: Stage
    keep: list[list[int]]
    counts: list[int]


@dataclass(frozen=True, eq=False)
class PrunedCall:
    """One call of the model whose images were pruned.

    Attributes:
        selection: what stayed before the LLM, one row an image; None if everything did, or the images are unequal. It
            holds features that the pruner made only if that was asked for.
        stages: all stages in order, the one before the LLM included.
        counts: visual tokens (before the first stage, after the last) of each batch row.
        seconds: of ``vision`` (tower and projector), ``selection`` (signals and pruner, at all stages) and ``prefill``
            (the LLM, without the selections in it).
    """

    selection: TokenSelection | None
    stages: list[StageTrace]
    counts: list[tuple[int, int]]
    seconds: dict[str, float]


def stage_traces(pruned: PrunedInputs, inside: Sequence[Alive], batch: int) -> list[StageTrace]:
    """All stages of a call that has run.

    Args:
        pruned: its inputs.
        inside: what went on from each stage inside the LLM.
        batch: B, rows of its prompts; a batch that ``generate`` repeated for beams counts once.
    """
    traces, layout = [], pruned.layout
    for stage, kept in pruned.early:
        keep: list[list[int]] = [[] for _ in range(batch)]
        for row, tokens in zip(layout.rows.tolist(), layout.units, strict=True):
            keep[row] += layout.numbers[tokens[kept[tokens]]].tolist()
        traces.append(StageTrace(stage, [sorted(row) for row in keep], [len(row) for row in keep]))
    if pruned.inside is not None:
        for step, alive in zip(pruned.inside.steps, inside, strict=False):
            copies = len(alive.counts) // batch
            traces.append(StageTrace(step.stage, alive.kept[::copies], alive.counts[::copies]))
    return traces


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls in a block.

    Attributes:
        calls: those that brought images, in order; of an attached pruner the last ones.
    """

    calls: MutableSequence[PrunedCall] = field(default_factory=list)

    @property
    def last(self) -> PrunedCall:
        """The last call.

        Raises:
            TokenPruneError: if there was none.
        """
        if not self.calls:
            raise TokenPruneError("nothing was pruned: the model was not called with an image in this block")
        return self.calls[-1]

    @property
    def keep(self) -> Tensor:
        """Visual tokens (I, K) long that entered the LLM in the last call, one row an image.

        Raises:
            TokenPruneError: if there was no call, it pruned inside the LLM alone, or the images have different numbers
                of tokens.
        """
        if self.last.selection is None:
            what = "nothing was pruned before the LLM" if self.last.stages[0].stage.inside else "images are unequal"
            raise TokenPruneError(f"{what}; see stages for what was alive at each layer")
        return self.last.selection.keep

    @property
    def stages(self) -> list[StageTrace]:
        """All stages of the last call, in order."""
        return self.last.stages

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Visual tokens (before the first stage, after the last) of each batch row in the last call."""
        return self.last.counts

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of ``vision``, ``selection`` and ``prefill`` in the last call."""
        return self.last.seconds
