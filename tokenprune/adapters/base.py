"""The base class of model adapters, their registry, and how one is found for a model.

An adapter holds all that is known of one model family. Most of the work, here and in ``inputs``, is the same for all
families; a new one states its sizes, where the signals of its vision tower are, and what its inputs must look like.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.adapters import inputs as prompts
from tokenprune.adapters.inputs import Encoded, Prepared, PrunedInputs
from tokenprune.adapters.pruned import prune_inputs
from tokenprune.adapters.question import ROLES, last_question
from tokenprune.adapters.signals import PAIRED, TEXTUAL, check_offered, check_steps, gather_signals
from tokenprune.adapters.text_tower import TextTower, load_text_tower
from tokenprune.budget import Budget
from tokenprune.errors import ModelError
from tokenprune.registry import Registry
from tokenprune.types import ModelSpec, Sample, Selector, Signal, Step, TokenSelection, VisualTokens

ADAPTERS: Registry[ModelAdapter]


class ModelAdapter(ABC):
    """What is known of one model family. It keeps no state between calls and leaves the model as it is.

    Attributes:
        model_types: values of ``config.model_type`` that it serves.
        offers: signals that it can give.
        example: hub id of a checkpoint.
        prompt: of a question, for processors without a chat template.
        roles: regular expressions of what begins a turn of the user and of the assistant.
    """

    model_types: ClassVar[tuple[str, ...]]
    offers: ClassVar[frozenset[Signal]]
    example: ClassVar[str]
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"
    roles: ClassVar[tuple[str, str]] = ROLES

    def __init__(self, model: Any, processor: Any, *, text_tower: str | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: the model.
            processor: that belongs to it.
            text_tower: hub id or folder of the CLIPModel that its vision tower comes from, or
                ``open_clip:<model>@<weights>``; None to find it. It is loaded when a pruner first needs it.

        Raises:
            ModelError: if the model has unknown parts or the processor is not the model's.
        """
        self.model, self.processor, self.text_tower = model, processor, text_tower
        self.spec = self.spec_from_config(model.config)
        ours, theirs = model.config.image_token_id, getattr(processor, "image_token_id", None)
        if ours != theirs or not hasattr(processor, "image_processor"):
            name = type(processor).__name__
            raise ModelError(
                f"{name} is not this model's processor: images are token {theirs} there, token {ours} here"
            )

    @classmethod
    @abstractmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes of a model, from its config alone.

        Raises:
            ModelError: if it has parts that this adapter does not know.
        """

    @abstractmethod
    def vision_signals(self, output: Any, requires: frozenset[Signal]) -> dict[Signal, Tensor]:
        """CLS_ATTENTION, KEYS and VISION_HIDDEN as far as required, from the output of ``get_image_features``."""

    def grid(self) -> tuple[int, int] | None:
        """(height, width) of an image's visual tokens if they are in raster order."""
        return None

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L) position ids of the unpruned prompt, as ``generate`` numbers them."""
        return prompts.text_positions(prompts.real_tokens(inputs))

    def placeholders(self, ids: Tensor) -> Tensor:
        """(B, L) bool, where the visual tokens go."""
        found: Tensor = ids == self.model.config.image_token_id
        return found

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Refuse what cannot be pruned.

        Raises:
            ModelError: says why.
        """
        if inputs.get("inputs_embeds") is not None or inputs.get("input_ids") is None:
            raise ModelError("inputs_embeds do not tell where the images are; give input_ids and pixel_values")
        prompts.check(inputs, self.placeholders(inputs["input_ids"]))

    def check_pruner(self, pruner: Selector) -> tuple[Step, ...]:
        """The steps of a pruner.

        Raises:
            ModelError: if one needs a signal that is not on offer at its stage.
            ConfigError: if the LLM has no such layer.
        """
        steps = pruner.steps(self.spec)
        check_steps(steps, self.offers, type(self).__name__)
        return steps

    def prepare(self, samples: Sequence[Sample]) -> Prepared:
        """Samples as inputs, padded on the left."""
        questions = [sample.question for sample in samples]
        texts = [self._prompt(question) for question in questions]
        images = [sample.image for sample in samples]
        batch = self.processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
        return Prepared(dict(batch.to(self.model.device)), questions)

    def _prompt(self, question: str) -> str:
        if self.processor.chat_template is None:
            return self.prompt.format(question=question)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text: str = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        return text

    def encode(self, inputs: Mapping[str, Any], requires: frozenset[Signal] = frozenset()) -> Encoded:
        """Run the vision tower and the projector. Gradients flow only if the model is in training mode.

        Args:
            inputs: with ``input_ids`` and pixels.
            requires: signals that pruners will ask for.

        Raises:
            ModelError: if prompts and images do not fit each other.
        """
        self.check_inputs(inputs)
        # Transformers keeps only the hidden state that the projector reads, unless asked for all.
        inner = {"output_hidden_states": True} if requires & {Signal.CLS_ATTENTION, Signal.KEYS} else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.model.training):
            output = prompts.encode_images(self.model, inputs, **inner)
        features = torch.stack(list(output.pooler_output))
        sizes = [features.shape[1]] * len(features)
        rows = prompts.rows_of_images(self.placeholders(inputs["input_ids"]), sizes)
        return Encoded(output, features, rows, prompts.content_ids(inputs["pixel_values"]))

    @torch.no_grad()
    def visual_tokens(
        self,
        inputs: Mapping[str, Any],
        requires: frozenset[Signal],
        questions: Sequence[str] | None = None,
        *,
        encoded: Encoded | None = None,
        tower: TextTower | None = None,
    ) -> VisualTokens:
        """What a pruner sees: one row an image, in the order of the placeholders.

        Args:
            inputs: with ``input_ids`` and pixels.
            requires: signals to compute; nothing else is.
            questions: of each batch row; None to read them off the prompts.
            encoded: of these inputs and signals, if ``encode`` ran before.
            tower: paired text tower; None to find it if it is needed.

        Raises:
            ModelError: if a signal is not on offer, or prompts and images do not fit each other.
        """
        check_offered(self.offers, requires, type(self).__name__)
        encoded = encoded or self.encode(inputs, requires)
        tower = tower or (self.load_text_tower() if requires & PAIRED else None)
        asked = self._questions(inputs, questions) if requires & TEXTUAL or questions is not None else []
        signals = gather_signals(self, encoded, requires, asked, tower)
        return VisualTokens(encoded.features.detach(), signals, grid=self.grid(), row_ids=encoded.ids)

    def _questions(self, inputs: Mapping[str, Any], questions: Sequence[str] | None) -> Sequence[str]:
        ids = inputs["input_ids"]
        if questions is None:
            tokenizer = self.processor.tokenizer
            return [last_question(tokenizer, row, self.placeholders(row), self.roles) for row in ids]
        if len(questions) != len(ids):
            raise ModelError(f"there are {len(questions)} questions for {len(ids)} prompts")
        return questions

    def load_text_tower(self, kind: str | None = None) -> TextTower:
        """The text tower that pairs with the vision tower; loaded once for a model.

        Args:
            kind: ``clip`` or ``open_clip`` if it must be of that library.

        Raises:
            ModelError: if there is none, or it is of the other library.
        """
        return load_text_tower(self.model, self.text_tower, kind)

    def prune_inputs(
        self,
        inputs: Mapping[str, Any],
        pruner: Selector | None,
        budget: Budget | None = None,
        questions: Sequence[str] | None = None,
        *,
        encoded: Encoded | None = None,
    ) -> PrunedInputs:
        """Encode the images, choose what enters the LLM, and shorten everything that is aligned with the prompt.

        What the pruner does inside the LLM it does when ``generate`` or ``prefill`` get the result.

        Args:
            inputs: with ``input_ids`` and pixels; position ids count as ``generate`` counts unless they are given.
            pruner: None to encode only.
            budget: for each image; needed unless the pruner has one of its own.
            questions: of each batch row; None to read them off the prompts.
            encoded: of these inputs and signals, if ``encode`` ran before.

        Raises:
            ModelError: if the inputs, or what the pruner needs, are not possible here.
            BudgetError: if there is none, or an image has fewer tokens than should stay.
        """
        return prune_inputs(self, inputs, pruner, budget, questions, encoded)

    def shorten(self, inputs: Mapping[str, Any], selection: TokenSelection | None, *, repack: bool) -> dict[str, Any]:
        """Inputs without pixels and without the placeholders of dropped visual tokens; see ``inputs.prune_prompt``."""
        whole = {"position_ids": self.positions(inputs), **inputs}
        placeholder, pad = self.placeholders(inputs["input_ids"]), self.processor.tokenizer.pad_token_id or 0
        return prompts.prune_prompt(self.model, whole, placeholder, selection, repack=repack, pad_token_id=pad)

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Any] | PrunedInputs, **generation: Any) -> list[str]:
        """Answer.

        Args:
            inputs: of ``prepare``, or what ``prune_inputs`` returns.
            **generation: of the model's ``generate``; greedy search unless said otherwise.

        Returns:
            The answers alone, without special tokens, stripped.

        Raises:
            ModelError: for pruned inputs without a cache; transformers takes gaps in the positions for packed prompts.
        """
        arguments, inside = prompts.unpack(inputs)
        if "mm_encoder_outputs" in arguments and generation.get("use_cache") is False:
            raise ModelError("generate with use_cache=False cannot take pruned inputs; leave the cache on")
        options = {"do_sample": False, **generation}
        if inside:
            options["disable_compile"] = True  # hooks are Python; on a GPU a static cache would compile the model
        with inside or nullcontext():
            output = self.model.generate(**prompts.fresh(arguments), **options)
        new = getattr(output, "sequences", output)[:, arguments["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    @torch.no_grad()
    def prefill(self, inputs: Mapping[str, Any] | PrunedInputs) -> Any:
        """Run the LLM on pruned inputs: ``logits`` (B, 1, vocabulary) of the last position, and the cache."""
        arguments, inside = prompts.unpack(inputs)
        with inside or nullcontext():
            return self.model(**prompts.fresh(arguments), use_cache=True, logits_to_keep=1)


ADAPTERS = Registry("adapter", package="tokenprune.adapters", group="tokenprune.adapters")


def register_adapter(name: str, *, paper: str | None = None) -> Callable[[type[ModelAdapter]], type[ModelAdapter]]:
    """Class decorator that makes an adapter known to the CLI, YAML files, the contract tests and the docs.

    Args:
        name: public name; also that of its file and YAML file.
        paper: URL of the paper that introduced the family.

    Raises:
        RegistryError: if the name is malformed or taken.
    """
    return ADAPTERS.register(name, paper=paper)


def adapter_class(model_type: str | None) -> type[ModelAdapter]:
    """The adapter that serves a ``config.model_type``; ModelError if there is none."""
    served = {kind: ADAPTERS.get(name) for name in ADAPTERS.names() for kind in ADAPTERS.get(name).model_types}
    if model_type not in served:
        known = ", ".join(sorted(served))
        raise ModelError(f"no adapter knows models of type {model_type!r}; known: {known}; see docs/add_an_adapter.md")
    return served[model_type]


def adapter_for(model: Any, processor: Any, *, text_tower: str | None = None) -> ModelAdapter:
    """The adapter of a loaded model, with the arguments and errors of ``ModelAdapter``; ModelError if none knows it."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return adapter_class(model_type)(model, processor, text_tower=text_tower)
