"""FLOPs of a model, unpruned and pruned, in all published conventions side by side, from its sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.signals import Encoder
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.steps import Step
from tokenprune.costs import flops
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.costs.selector import selection_flops
from tokenprune.pruners.base import Pruner
from tokenprune.report import engineering
from tokenprune.towers.timm_features import EncoderSize, encoder_size

HALF = 2  # bytes of a number in half precision


@dataclass(frozen=True)
class Case:
    """A model without or with a pruner.

    Attributes:
        name: heading of its column.
        plan: which visual tokens take part in what.
        kept: visual tokens that are left after the last stage.
        selection: FLOPs of choosing them; 0 without a pruner.
        left: visual tokens that are left behind each stage.
    """

    name: str
    plan: OperationPlan
    kept: int
    selection: int = 0
    left: flops.Left = ()


def unpruned_case(spec: ModelSpec) -> Case:
    """The model without a pruner: everything runs for all visual tokens."""
    return Case("unpruned", OperationPlan.drop_at(spec, (), (), spec.visual_tokens), spec.visual_tokens)


def pruned_case(spec: ModelSpec, pruner: Pruner, budget: Budget, text_tokens: int) -> Case:
    """The model with a pruner under a budget.

    Args:
        spec: of the model.
        pruner: one whose counts do not depend on the image's content.
        budget: for one image.
        text_tokens: all other tokens of the prompt, at least 1.

    Raises:
        TokenPruneError: if the pruner is adaptive, the model lacks its layers, the budget cannot be met, or the encoder
            whose features the pruner compares is not known.
    """
    if pruner.adaptive:
        raise ConfigError("how many tokens stay depends on the image; tokenprune run measures what that costs")
    total, steps = spec.visual_tokens, pruner.steps(spec)
    _check_tower(spec, steps)
    counts = pruner.schedule(spec, budget, total)
    alive = pruner.alive(spec, counts, total)
    arriving = pruner.arriving(spec, counts, total)[:-1]
    selection = selection_flops(spec, steps, counts, arriving, text_tokens, _encoder(steps))
    left = tuple(zip((step.stage for step in steps), alive, strict=True))
    return Case(str(budget), pruner.plan(spec, alive, total), (total, *alive)[-1], selection, left)


def _check_tower(spec: ModelSpec, steps: Sequence[Step]) -> None:
    """Refuse stages inside a vision tower whose patches are not the visual tokens, or that is not so deep."""
    for stage in (step.stage for step in steps if step.stage.place == "tower"):
        layers = 0 if spec.vision is None else spec.vision.layers
        if spec.vision_tiles > 1 or spec.vision_tokens - spec.vision_prefix != spec.visual_tokens:
            raise ConfigError(
                f"{stage}: patches can leave inside the vision tower where each is a visual token of one tile; here "
                f"{spec.visual_tokens} visual tokens are made of {spec.vision_tokens} in {spec.vision_tiles} tiles"
            )
        if stage.layer is None or not 0 <= stage.layer < layers:
            raise ConfigError(f"{stage}: the vision tower has {layers} layers; allowed: 0 to {layers - 1}")


def _encoder(steps: Sequence[Step]) -> EncoderSize | None:
    """The size of the other encoder, if a step needs its features."""
    signals = [signal.alternatives[0] for step in steps for signal in step.selector.requires]
    sources = [signal.source for signal in signals if isinstance(signal, Encoder)]
    return encoder_size(sources[0]) if sources else None


@dataclass(frozen=True)
class Line:
    """A line of the table of FLOPs.

    Attributes:
        name: what costs it.
        counts: how it is counted.
        values: of each case: FLOPs, or in ``unit``.
        unit: ``B`` (bytes), ``tokens``, or nothing for FLOPs.
        last: whether it ends a part of the table.
    """

    name: str
    counts: str
    values: tuple[float, ...]
    unit: str = ""
    last: bool = False

    def text(self, value: float) -> str:
        """A value for the terminal."""
        return f"{value:.5g}" if self.unit == "tokens" else engineering(value) + self.unit


def lines(spec: ModelSpec, cases: Sequence[Case], text_tokens: int) -> list[Line]:
    """The lines of the table: prefill of the decoder layers by convention, then everything else.

    Args:
        spec: of the model.
        cases: the first is what shares are of.
        text_tokens: all other tokens of the prompt, at least 1.
    """
    prefill = []
    for name, convention in CONVENTIONS.items():
        values = tuple(convention.prefill(spec, case.plan, text_tokens) for case in cases)
        prefill.append(Line(name, convention.counts, values, last=name == [*CONVENTIONS][-1]))
    exact = prefill[0].values
    return [*prefill, *_prefill_lines(spec, cases, exact), *_decoding_lines(spec, cases, text_tokens)]


def _prefill_lines(spec: ModelSpec, cases: Sequence[Case], exact: Sequence[float]) -> list[Line]:
    """Lines of the rest of a prefill, and of all of it."""
    selection = tuple(case.selection for case in cases)
    vision = tuple(flops.vision_flops(spec, case.left) for case in cases)
    projector = tuple(flops.projector_flops(spec, case.left) for case in cases)
    head = flops.lm_head_flops(spec)
    whole = tuple(head + sum(parts) for parts in zip(exact, selection, vision, projector, strict=True))
    return [
        Line("vision tower", "exact", vision),
        Line("projector", "exact", projector),
        Line("LM head", "exact, one position", (head,) * len(cases)),
        Line("selection", "its matrix products, on random tokens", selection),
        Line("whole prefill", "exact, with these four", whole, last=True),
    ]


def _decoding_lines(spec: ModelSpec, cases: Sequence[Case], text_tokens: int) -> list[Line]:
    """Lines of what a generated token costs, and what is kept for it."""

    def each(value: Callable[[OperationPlan], float]) -> tuple[float, ...]:
        return tuple(value(case.plan) for case in cases)

    head = flops.lm_head_flops(spec)
    step = each(lambda plan: flops.llm_decode_flops(spec, plan, text_tokens) + head)
    cache = each(lambda plan: sum(planned_kv_bytes_by_layer(spec, plan, text_tokens, HALF)))
    return [
        Line("decoding", "exact, the first token, with LM head", step),
        Line("KV cache", "half precision, text", cache, "B"),
        Line("average tokens", "visual tokens in a layer", each(lambda plan: plan.mean_tokens), "tokens"),
        Line("kept tokens", "visual tokens after the last stage", tuple(case.kept for case in cases), "tokens"),
    ]


def console_table(title: str, note: str, rows: Sequence[Line], cases: Sequence[Case]) -> Table:
    """The lines for the terminal, with a note below; each case but the first has a column of shares."""
    columns: list[Column | str] = [Column("one prompt, one image", no_wrap=True), "counts"]
    for place, case in enumerate(cases):
        columns.append(Column(escape(case.name), justify="right"))
        columns += [Column("share %", justify="right")] if place else []
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, title=escape(title), title_justify="left")
    table.caption, table.caption_justify = escape(note), "left"
    for row in rows:
        cells = []
        for place, value in enumerate(row.values):
            cells.append(row.text(value))
            cells += [f"{100 * value / row.values[0]:.1f}" if row.values[0] else "-"] if place else []
        table.add_row(row.name, row.counts, *cells, end_section=row.last)
    return table
