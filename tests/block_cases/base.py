"""What people do around ``tp.prune`` with a model, by kinds: each case works, or is refused in a sentence.

A case is run on a ``Subject``: a family's model and a pruner before or inside its LLM. ``docs/concepts.md`` has the
table of the cases, which ``test_block_contract`` makes of what happens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import tokenprune as tp
from tokenprune.testing.pruners import Within

KEEP, NEW = 4, 5
PLACES = ("before", "inside")


@dataclass
class Subject:
    """A model, its inputs and a pruner.

    Attributes:
        family: of the model.
        place: ``before`` or ``inside``.
        model, processor: shared by all cases, unless one asks for its own.
    """

    family: Any
    place: str
    model: Any
    processor: Any

    def own(self) -> "Subject":
        """With a model that a case may change."""
        return Subject(self.family, self.place, *self.family.make("sdpa"))

    def inputs(self, *rows: int, **how: Any) -> dict[str, Any]:
        asked = self.family.ask(self.processor, *(rows or (1,)), **how)
        asked.pop("labels", None)
        return asked

    def labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        """As in training: none for visual tokens."""
        visual = self.family.placeholder(self.model, inputs["input_ids"])
        return inputs["input_ids"].masked_fill(visual, -100)

    @property
    def pruner(self) -> Any:
        return (
            Within(positions="original")
            if self.place == "inside"
            else tp.create_pruner("uniform", positions="original")
        )

    def prune(self, model: Any = None, **how: Any) -> Any:
        return tp.prune(
            self.model if model is None else model, self.processor, self.pruner, **(how or {"keep_tokens": KEEP})
        )

    def attach(self, **how: Any) -> tp.Attached:
        return tp.attach(self.model, self.processor, self.pruner, **(how or {"keep_tokens": KEEP}))

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], model: Any = None) -> torch.Tensor:
        return (self.model if model is None else model)(**inputs).logits

    def pruned(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a forward, and what ``generate`` says, in a plain block."""
        with self.prune():
            return self.logits(inputs), self.model.generate(**inputs, max_new_tokens=NEW)


@dataclass(frozen=True)
class Case:
    """One thing that people do.

    Attributes:
        kind: of the table.
        what: a row of the table.
        check: asserts that it is right; where it is refused, ends in that ModelError.
        before, inside: what the refusal says, a regular expression; None where it works.
        some: whether it is slow, and runs for one family of each kind of position ids alone.
        others: families that refuse it, and how.
    """

    kind: str
    what: str
    check: Callable[[Subject], None]
    before: str | None = None
    inside: str | None = None
    some: bool = False
    others: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, place: str, family: str = "") -> str | None:
        return self.others.get(family, self.inside if place == "inside" else self.before)


CASES: list[Case] = []


def case(kind: str, what: str, **how: Any) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    def note(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CASES.append(Case(kind, what, check, **how))
        return check

    return note


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert torch.equal(a, b)


def left_on(model: Any) -> list[Any]:
    kinds = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return [
        (type(module), [len(getattr(module, kind)) for kind in kinds], sorted(vars(module)))
        for module in model.modules()
    ]


def follow(x: dict[str, Any], sequences: torch.Tensor) -> dict[str, Any]:
    """The next turn: the conversation so far and three words more."""
    more = sequences[:, -3:]
    ids = torch.cat([sequences, more], 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in x:
            given[name] = torch.nn.functional.pad(x[name], (0, ids.shape[1] - x[name].shape[1]))
    return given
