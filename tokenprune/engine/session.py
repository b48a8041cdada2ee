"""A model that runs pruned: from samples to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.inputs import Prepared
from tokenprune.core.budget import Budget
from tokenprune.core.clip import Clip
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Signal
from tokenprune.core.square import Colour, square_sample
from tokenprune.core.steps import Selector, Step
from tokenprune.core.tokens import VisualTokens
from tokenprune.engine.prompt import pruned, run
from tokenprune.engine.prompt.encoded import Encoded, encode
from tokenprune.engine.prompt.question import questions_of, write_prompts
from tokenprune.engine.prompt.run import Ran
from tokenprune.engine.prompt.shorten import PrunedInputs
from tokenprune.engine.prompt.signals import rows_of
from tokenprune.engine.providers.base import Facts, check_signals
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.providers.steps import check_steps
from tokenprune.towers.text.base import TextTower


@dataclass(frozen=True, eq=False)
class Session:
    """What is done with a model: its adapter knows, a session does. It keeps nothing between calls.

    Attributes:
        adapter: of the model.
        system: what the system says before each question; empty for nothing of ours.
        padding: colour with which pictures are padded to squares, RGB in 0 to 255; None leaves them as they are.
    """

    adapter: ModelAdapter
    system: str = ""
    padding: Colour | None = None

    @property
    def facts(self) -> Facts:
        """What was known of the model before its weights."""
        return Facts(type(self.adapter), self.adapter.model.config, self.adapter.text_tower)

    def check_pruner(self, pruner: Selector) -> tuple[Step, ...]:
        """Check a pruner, and return its steps.

        Raises:
            ModelError: if one needs a signal that is not on offer, or a text tower that is not known.
            ConfigError: if the LLM has no such layer.
        """
        steps = pruner.steps(self.adapter.spec)
        check_steps(steps, self.facts)
        return steps

    def seen(self, sample: Sample) -> Sample:
        """The sample as the model sees it: with padded pictures, if they are, and boxes in them."""
        return sample if self.padding is None else square_sample(sample, self.padding)

    def prepare(self, samples: Sequence[Sample]) -> Prepared:
        """Samples as inputs of the model, padded on the left; their pictures and videos are opened now.

        Raises:
            ModelError: if one cannot be asked.
            DataError: if a picture or video cannot be decoded.
        """
        adapter, parts = self.adapter, [self.seen(sample).turn.parts() for sample in samples]
        texts = write_prompts(adapter.processor, adapter.prompt, samples, parts, self.system)
        images = [[part for part in each if not isinstance(part, str | Clip)] for each in parts]
        videos = [[part.frames() for part in each if isinstance(part, Clip)] for each in parts]
        inputs = adapter.model_inputs(texts, images, videos)
        return Prepared(inputs, [sample.question for sample in samples])

    def encode(self, inputs: Mapping[str, Any], requires: frozenset[Signal] = frozenset()) -> Encoded:
        """Run the vision tower and the projector on pixels; pruners may ask for the signals in ``requires`` then.

        Raises:
            ModelError: if prompts and images do not fit each other.
        """
        return encode(self.adapter, inputs, requires)

    def visual_tokens(
        self,
        inputs: Mapping[str, Any],
        requires: frozenset[Signal],
        questions: Sequence[str] | None = None,
        *,
        encoded: Encoded | None = None,
        tower: TextTower | None = None,
    ) -> VisualTokens:
        """What a pruner sees: one row an image, or a part of one; in the order of the placeholders.

        Args:
            inputs: with ``input_ids`` and pixels.
            requires: signals to compute; nothing else is.
            questions: of each batch row; None to read them off the prompts.
            encoded: of these inputs and signals, if ``encode`` ran before.
            tower: paired text tower; None to find it if it is needed.

        Raises:
            ModelError: if a signal is not on offer, or prompts and images do not fit each other.
        """
        # A text tower that is given need not be one that the config names.
        chosen = check_signals(requires, Facts(type(self.adapter)) if tower else self.facts)
        encoded = encoded or self.encode(inputs, frozenset(chosen))
        view = Encoding(self.adapter, inputs, encoded, questions, tower=tower)
        return rows_of(view, chosen, range(len(encoded.layout.units)))

    def questions(self, inputs: Mapping[str, Any]) -> list[str]:
        """What each prompt asks, read off its tokens."""
        return questions_of(self.adapter, inputs["input_ids"])

    def prune_inputs(
        self,
        inputs: Mapping[str, Any],
        pruner: Selector,
        budget: Budget | None = None,
        questions: Sequence[str] | None = None,
        *,
        encoded: Encoded | None = None,
        samples: Sequence[Sample] | None = None,
    ) -> PrunedInputs:
        """Encode the images, choose what enters the LLM, and shorten everything that is aligned with the prompt.

        What the pruner does inside the LLM it does when ``generate`` or ``prefill`` get the result.

        Args:
            inputs: with ``input_ids`` and pixels; position ids count as ``generate`` counts unless they are given.
            pruner: what chooses; ``none`` encodes only.
            budget: for each image; needed unless the pruner has one of its own, or no stage.
            questions: of each batch row; None to read them off the prompts.
            encoded: of these inputs and signals, if ``encode`` ran before.
            samples: that the inputs were made of, one a batch row; controls need them.

        Raises:
            ModelError: if the inputs, or what the pruner needs, are not possible here.
            BudgetError: if there is none, or an image has fewer tokens than should stay.
        """
        return pruned.prune_inputs(self.adapter, inputs, pruner, budget, questions, encoded, samples)

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Any] | PrunedInputs, **generation: Any) -> Ran[list[str]]:
        """Answer prompts.

        Args:
            inputs: of ``prepare``, or what ``prune_inputs`` returns.
            **generation: of the model's ``generate``; greedy search unless said otherwise.

        Returns:
            The answers alone, without special tokens, stripped; and what was pruned inside the LLM meanwhile.

        Raises:
            ModelError: for pruned inputs without a cache; transformers takes gaps in the positions for packed prompts.
        """
        ran = run.generate(self.adapter.model, inputs, generation)
        texts = self.adapter.processor.tokenizer.batch_decode(ran.output, skip_special_tokens=True)
        return Ran([text.strip() for text in texts], ran.stages, ran.seconds)

    @torch.no_grad()
    def prefill(self, inputs: Mapping[str, Any] | PrunedInputs) -> Ran[Any]:
        """One forward over the prompt, as ``generate`` begins.

        Args:
            inputs: of ``prepare``, or what ``prune_inputs`` returns.

        Returns:
            What the model's forward returns, with a cache; and what was pruned inside the LLM meanwhile.
        """
        return run.forward(self.adapter, inputs)
