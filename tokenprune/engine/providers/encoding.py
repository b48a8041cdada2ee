"""What providers see before the LLM: images that are encoded, prompts, and the samples that they were made of."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Question, Signal
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.question import questions_of
from tokenprune.engine.providers.base import Facts, provider_of
from tokenprune.towers.text.base import TextTower, load_text_tower


@dataclass(frozen=True, eq=False)
class Encoding:
    """A batch before the LLM.

    Attributes:
        adapter: of the model.
        inputs: of the model.
        encoded: the images and videos.
        questions: of each prompt; None to read them off the prompts.
        samples: that the prompts were made of; None if there are none.
        quotas: how many tokens of each unit stay.
        tower: paired text tower that was given; None to find it.

    Raises:
        ModelError: if there are not as many questions as prompts, whether or not a signal depends on them.
    """

    adapter: ModelAdapter
    inputs: Mapping[str, Any]
    encoded: Encoded
    questions: Sequence[str] | None = None
    samples: Sequence[Sample] | None = None
    quotas: Sequence[int] = ()
    tower: TextTower | None = None

    def __post_init__(self) -> None:
        prompts = len(self.inputs["input_ids"])
        if self.questions is not None and len(self.questions) != prompts:
            raise ModelError(f"there are {len(self.questions)} questions for {prompts} prompts")

    @property
    def facts(self) -> Facts:
        """What was known of the model before its weights were loaded."""
        return Facts(type(self.adapter), self.adapter.model.config, self.adapter.text_tower)

    def text_tower(self, library: str | None) -> TextTower:
        """The text tower that pairs with the vision tower; loaded once for a model.

        Args:
            library: that it must come from; None for either.
        """
        return self.tower or load_text_tower(self.adapter.model, self.adapter.text_tower, library)

    def asked(self, question: Question) -> tuple[str, ...]:
        """What each prompt asks, or what its sample has as another question.

        Raises:
            ModelError: if there is no other question.
        """
        if question == "other":
            return other_questions(self.samples or ())
        return self._own

    @functools.cached_property
    def _own(self) -> tuple[str, ...]:
        if self.questions is None:
            return tuple(questions_of(self.adapter, self.inputs["input_ids"]))
        return tuple(self.questions)

    def load(self, signals: Iterable[Signal]) -> None:
        """Load what signals need besides the model."""
        for signal in signals:
            provider = provider_of(signal)
            assert provider is not None  # as it was checked
            provider.ready(signal, self)

    def signal(self, signal: Signal) -> Tensor:
        """A signal of all tokens (T, ...) or prompts (B, ...); made once for the images and what else it depends on."""
        provider = provider_of(signal)
        assert provider is not None  # as it was checked
        key = (signal, provider.depends(signal, self))
        if key not in self.encoded.made:
            self.encoded.made[key] = provider.make(signal, self)
        return self.encoded.made[key]


def other_questions(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The other question of each sample.

    Raises:
        ModelError: if one has none.
    """
    others = tuple(sample.other_question for sample in samples)
    if not others or not all(others):
        raise ModelError(
            "relevance to another question needs a task whose samples come with another question; try scenes"
        )
    return others
