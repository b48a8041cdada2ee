"""The file of a study's results: a header, then one line a policy, with every question's outcome packed into text.

Divergences are half-precision numbers in base 64, answers are bits in hexadecimal, so that a policy measured on some
thousand questions takes a few kilobytes and whatever is asked later needs no new run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from study.measurements import Measured, PlanSet
from tokenprune.core.errors import DataError
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.pruners.dop.cost import Cost
from tokenprune.pruners.dop.depths import Depths
from tokenprune.sweeps.journal import Journal

Line = dict[str, Any]


@dataclass(frozen=True)
class Header:
    """What all policies have in common.

    Attributes:
        layers: of the LLM.
        visual_tokens: before pruning.
        text_tokens: other tokens of the prompt that FLOPs are for.
        budgets: FLOPs by the number of visual tokens that take part in everything for as much.
        validation, test: the kind of each question.
    """

    layers: int
    visual_tokens: int
    text_tokens: int
    budgets: dict[int, float]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def kinds(self) -> list[str]:
        """Of the test questions, by name."""
        return sorted(set(self.test))


@dataclass(frozen=True, eq=False)
class Row:
    """One policy.

    Attributes:
        set: what kind of policy: ``depth_wise``, ``greedy_free`` or ``greedy_depth_wise``.
        base: which pruner chooses the visual tokens.
        tokens: how many enter the LLM.
        active: (layers, 3) bool over ``Operation``.
        flops: of the decoder layers in prefill, for one question.
        attention, mlp: its depths; None if it is not depth-wise by two depths.
        first_token: (S,) KL on each validation question, nats; likewise ``teacher_forced``.
        same: (S,) bool, whether the answer to it is the unpruned model's.
        test_first_token: (T,) KL on each test question.
        right: (T,) bool, whether the answer to it is right.
    """

    set: str
    base: str
    tokens: int
    active: NDArray[np.bool_]
    flops: float
    attention: int | None
    mlp: int | None
    first_token: NDArray[np.float64]
    teacher_forced: NDArray[np.float64]
    same: NDArray[np.bool_]
    test_first_token: NDArray[np.float64]
    right: NDArray[np.bool_]

    @cached_property
    def divergence(self) -> float:
        """Mean KL at the first token on the validation questions."""
        return float(self.first_token.mean())

    @cached_property
    def accuracy(self) -> float:
        """Share of the test questions that are answered right."""
        return float(self.right.mean())

    @property
    def name(self) -> str:
        """For tables: depths and tokens."""
        return f"({self.attention}, {self.mlp}, {self.tokens})"


def rows(one: PlanSet, measured: dict[str, Measured], depths: Sequence[Depths] | None, cost: Cost) -> list[Row]:
    """The rows of a plan set.

    Args:
        one: the plans.
        measured: by split.
        depths: of the plans, if these are depth-wise by two depths.
        cost: of a plan.
    """
    validation, test = measured["validation"], measured["test"]
    assert test.right is not None
    found = []
    for at, active in enumerate(one.plans):
        plan = OperationPlan(torch.from_numpy(active.copy())[..., None], (one.tokens,))
        row = Row(
            set=one.name,
            base=one.base,
            tokens=one.tokens,
            active=active,
            flops=cost.of(plan),
            attention=depths[at].attention if depths else None,
            mlp=depths[at].mlp if depths else None,
            first_token=validation.first_token[at],
            teacher_forced=validation.teacher_forced[at],
            same=validation.same[at],
            test_first_token=test.first_token[at],
            right=test.right[at],
        )
        found.append(row)
    return found


def save(path: Path, header: Header, found: Sequence[Row], config: Line, origin: Sequence[str]) -> None:
    """Write the file anew.

    Args:
        path: JSONL file.
        header: of all rows.
        found: the policies.
        config: of the study, for the reader.
        origin: hashes of weights, data and code.
    """
    kinds = sorted({*header.validation, *header.test})
    numbers = {split: [kinds.index(kind) for kind in getattr(header, split)] for split in ("validation", "test")}
    head = {**asdict(header), "budgets": list(header.budgets.items()), "kinds": kinds, **numbers}
    lines = [{**head, "config": config, "origin": list(origin)}, *(_line(header, row) for row in found)]
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def load(path: Path) -> tuple[Header, list[Row]]:
    """Read a file.

    Raises:
        DataError: if it cannot be read or is not one of ``save``.
    """
    if not path.is_file():
        raise DataError(f"results {str(path)!r} cannot be read: there is no such file")
    try:
        head, *lines = Journal(path).read()
        validation, test = (tuple(head["kinds"][at] for at in head[split]) for split in ("validation", "test"))
        sizes = head["layers"], head["visual_tokens"], head["text_tokens"]
        header = Header(*sizes, dict(head["budgets"]), validation, test)
        return header, [_row(header, line) for line in lines]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{str(path)!r} is not a file of results that a study wrote: {error!r}") from None


def _line(header: Header, row: Row) -> Line:
    kinds = np.array(header.test)
    accuracy = {kind: round(float(row.right[kinds == kind].mean()), 4) for kind in header.kinds}
    return {
        "set": row.set,
        "base": row.base,
        "tokens": row.tokens,
        **{op.name.lower(): "".join("01"[on] for on in row.active[:, op].tolist()) for op in Operation},
        "flops": row.flops,
        "attention_depth": row.attention,
        "mlp_depth": row.mlp,
        "divergence": {
            "first_token": float(f"{row.divergence:.4g}"),
            "teacher_forced": float(f"{row.teacher_forced.mean():.4g}"),
            "test_first_token": float(f"{row.test_first_token.mean():.4g}"),
        },
        "accuracy": round(row.accuracy, 4),
        "accuracy_by_kind": accuracy,
        "first_token": _pack(row.first_token),
        "teacher_forced": _pack(row.teacher_forced),
        "same": np.packbits(row.same).tobytes().hex(),
        "test_first_token": _pack(row.test_first_token),
        "right": np.packbits(row.right).tobytes().hex(),
    }


def _row(header: Header, line: Line) -> Row:
    active = np.array([[mark == "1" for mark in line[op.name.lower()]] for op in Operation]).T
    return Row(
        set=line["set"],
        base=line["base"],
        tokens=line["tokens"],
        active=active,
        flops=line["flops"],
        attention=line["attention_depth"],
        mlp=line["mlp_depth"],
        first_token=_unpack(line["first_token"]),
        teacher_forced=_unpack(line["teacher_forced"]),
        same=_unpack_bits(line["same"], len(header.validation)),
        test_first_token=_unpack(line["test_first_token"]),
        right=_unpack_bits(line["right"], len(header.test)),
    )


def _pack(values: NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def _unpack(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64)


def _unpack_bits(text: str, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)
