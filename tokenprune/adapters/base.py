"""The base class of model adapters.

An adapter holds all that is known of one model family: its sizes, where the signals of its vision tower are, what its
inputs must look like. What is done with a model is the same for all families, see ``engine.session``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.adapters import inputs as prompts
from tokenprune.adapters.inputs import PIXELS
from tokenprune.core.budget import Budget
from tokenprune.core.clip import VideoMetadata
from tokenprune.core.errors import BudgetExceedsError, ModelError, hint
from tokenprune.core.placement import device_of
from tokenprune.core.signals import Signal
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.steps import Selector, Step
from tokenprune.towers import nominal
from tokenprune.towers.base import UNKNOWN, Tower, TowerOutput
from tokenprune.towers.items import Grid, Item, Unit
from tokenprune.towers.pictures import Pictures

Video = tuple[NDArray[np.uint8], VideoMetadata]


class ModelAdapter(ABC):
    """What is known of one model family. It keeps no state between calls and leaves the model as it is.

    Attributes:
        model_types: values of ``config.model_type`` that it serves.
        tower: the kind of its vision tower, which knows its layers and how signals are made of them.
        offers: signals of images that it can give besides those of its tower.
        example: hub id of a checkpoint.
        prompt: of a question, for processors without a chat template.
        roles: what comes before a question and after it in prompts of models that have no chat template and one turn.
        answer_type: what ``token_type_ids``, if the model takes any, are for what follows the prompt.
        scopes: what a row that a pruner chooses among can be; the first is the default. Budgets are of an image or a
            video, unless the scope is ``per_frame``.
        any_size: whether an image or video can have more visual tokens than the nominal image of the spec.
        text_alone: whether it answers a question about nothing that is shown.
        places: where a pruner can have a stage: ``tower`` (whose towers are ``RowTower``, with a patch for each visual
            token), ``projector`` (see ``project``), ``pre_llm``, ``decoder``, ``cache``.
    """

    model_types: ClassVar[tuple[str, ...]]
    tower: ClassVar[Tower] = UNKNOWN
    offers: ClassVar[frozenset[Signal]] = frozenset()
    example: ClassVar[str]
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"
    roles: ClassVar[tuple[str, str] | None] = None
    answer_type: ClassVar[int] = 0
    scopes: ClassVar[tuple[str, ...]] = ("image",)
    any_size: ClassVar[bool] = False
    text_alone: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("pre_llm", "decoder", "cache")

    def __init__(self, model: Any, processor: Any, *, text_tower: str | None = None, scope: str | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: the model.
            processor: that belongs to it.
            text_tower: hub id or folder of the CLIPModel or SiglipModel that its vision tower comes from, or
                ``open_clip:<model>@<weights>``; None to find it. It is loaded when a pruner first needs it.
            scope: one of ``scopes``.

        Raises:
            ModelError: if the model has unknown parts, there is no such scope, or the processor is not the model's.
        """
        self.check_scope(scope)
        self.model, self.processor, self.text_tower = model, processor, text_tower
        self.scope, self.spec = scope or self.scopes[0], self.spec_from_config(model.config)
        several, ours = getattr(processor, "image_token_ids", None), model.config.image_token_id
        theirs = several[0] if isinstance(several, list) else getattr(processor, "image_token_id", None)
        if ours != theirs or not hasattr(processor, "image_processor"):
            tokens = f"images are token {theirs} there, token {ours} here"
            raise ModelError(f"{type(processor).__name__} is not this model's processor: {tokens}")

    @property
    def device(self) -> torch.device:
        """The device that inputs go to, also if parts of the model are elsewhere."""
        return device_of(self.model, torch.device("cpu"))

    @classmethod
    def check_scope(cls, scope: str | None) -> None:
        """Raise ModelError unless the family has such a scope."""
        if scope is not None and scope not in cls.scopes:
            raise ModelError(f"scope {scope!r} is not one of {cls.__name__}; {hint(scope, cls.scopes)}")

    @classmethod
    @abstractmethod
    def spec_from_config(cls, config: Any) -> ModelSpec:
        """Sizes of a model, from its config alone; ModelError if it has parts that this adapter does not know."""

    @classmethod
    def on_offer(cls) -> frozenset[Signal]:
        """Signals of images that the family can give: those of its tower, and others."""
        return cls.tower.offers | cls.offers

    def per_token(self, modality: str, x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Something (T, ...) of visual tokens, in the order of their placeholders, from what each patch has.

        Args:
            modality: ``image`` or ``video``.
            x: of each patch, as ``Tower.signal`` gives it.
            inputs: of the model.
        """
        return self.tower.merged(x, TowerOutput(self.model, modality, None, inputs))

    def grid(self) -> Grid | None:
        """The (height, width) of an image's visual tokens, if in raster order and alike for all images; else None."""
        return None

    def items(self, modality: str, output: Any, inputs: Mapping[str, Any]) -> list[Item]:
        """The images or videos of a batch and the rows that pruners choose among; here each image is a row.

        Args:
            modality: ``image`` or ``video``.
            output: of the modality's encoder.
            inputs: of the model.
        """
        pairs, grid = zip(output.pooler_output, inputs[PIXELS[modality]], strict=True), self.grid()
        return [Item(x, [Unit(torch.arange(len(x)), grid)], own, Pictures.of(own, grid)) for x, own in pairs]

    def shortened(self, output: Any, parts: list[Tensor], kept: list[Tensor]) -> Any:
        """What the model takes for the output of its encoder.

        Args:
            output: of the encoder.
            parts: (k, D) for each image or video, the visual tokens that stay.
            kept: (n,) bool for each, which these are.
        """
        return BaseModelOutputWithPooling(pooler_output=parts)

    def project(self, states: Tensor) -> Tensor:
        """Project states of the vision tower (t, V) to visual tokens (t, D), where there is a stage before that."""
        raise ModelError(f"{type(self).__name__} does not say how its projector makes a visual token of its patches")

    def special_states(self, output: Any) -> Tensor:
        """Tower states (I, S, V) that no patch makes, such as CLS, of each picture that it saw; see ``project``."""
        raise ModelError(f"{type(self).__name__} does not say which tokens of its vision tower no patch makes")

    def aligned(self, output: Any, move: Callable[[Tensor], Tensor]) -> Any:
        """The output of an encoder in which all that each visual token has besides its features is moved with them.

        Args:
            output: of the encoder; here it has nothing else.
            move: (t, ...) of the modality's visual tokens, as they were, to what they become.
        """
        return output

    def count_images(self, ids: Tensor) -> Tensor:
        """How many images a later turn brings, (B,) long; ModelError if the prompt does not tell."""
        numbers = self.placeholders(ids).sum(1)
        if bool((numbers % self.spec.visual_tokens).any()):
            raise ModelError("a later turn cannot bring images whose number of tokens varies; give them all at first")
        return numbers // self.spec.visual_tokens

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids (B, L) of the unpruned prompt, as ``generate`` numbers them."""
        return prompts.text_positions(prompts.real_tokens(inputs))

    def forward_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids of the unpruned prompt in a bare forward: here (B, L), all columns counted, padding too."""
        ids = inputs["input_ids"]
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

    def given_positions(self, positions: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Position ids that a caller gave, in whatever shape the model takes, as ``positions`` has them."""
        return positions

    def repacked(self, positions: Tensor, placeholder: Tensor, gone: Tensor) -> Tensor:
        """Position ids without gaps where tokens leave.

        Args:
            positions: of the unpruned prompt, (B, L) or as ``positions`` has them.
            placeholder: (B, L) bool, where visual tokens are.
            gone: (B, L) bool, those that leave.
        """
        return positions - gone.long().cumsum(1)

    def placeholders(self, ids: Tensor, modality: str | None = None) -> Tensor:
        """Which columns (B, L) bool hold visual tokens: of one modality, or of all."""
        names = PIXELS if modality is None else (modality,)
        tokens = (getattr(self.model.config, f"{name}_token_id", None) for name in names)
        return torch.stack([ids == token for token in tokens if token is not None]).any(0)

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raise ModelError, which says why, for inputs that cannot be pruned."""
        if inputs.get("inputs_embeds") is not None or inputs.get("input_ids") is None:
            raise ModelError("inputs_embeds do not tell where the images are; give input_ids and pixel_values")
        prompts.check(inputs, self.placeholders(inputs["input_ids"]))

    @classmethod
    def check_steps(cls, steps: Sequence[Step]) -> None:
        """Raise ModelError for steps of a pruner that no model of this family can do, whatever their signals."""
        return  # any, unless a family says otherwise

    @classmethod
    def check_budget(cls, pruner: Selector, spec: ModelSpec, budget: Budget) -> None:
        """Raise BudgetError if a budget cannot be met, or no image has more tokens; those with fewer keep all."""
        with suppress(BudgetExceedsError) if cls.any_size else nullcontext():
            pruner.schedule(spec, budget, spec.visual_tokens)

    def model_inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], videos: Sequence[Sequence[Video]] = ()
    ) -> dict[str, Any]:
        """Inputs of the model, on its device and padded on the left.

        Args:
            texts: the prompts.
            images: RGB, of each prompt.
            videos: of each prompt, as ``Clip.frames`` gives them.
        """
        given: dict[str, Any] = {"images": [list(row) for row in images]} if any(images) else {}
        if shown := [video for row in videos for video in row]:
            metadata = [dataclasses.asdict(about) | {"duration": about.duration} for _, about in shown]
            given["videos"] = [frames for frames, _ in shown]
            given["videos_kwargs"] = {"video_metadata": metadata, "do_sample_frames": False}
        batch = self.processor(text=list(texts), padding=True, padding_side="left", return_tensors="pt", **given)
        return {name: value for name, value in batch.to(self.device).items() if name != "video_metadata"}

    def forward_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments of a forward over a prompt, from those of ``generate``, which may count otherwise; here equal."""
        return inputs

    def nominal_inputs(self, text: int) -> dict[str, Tensor]:
        """Inputs with the nominal image of ``spec``, made of noise, and ``text`` more tokens."""
        prompt = nominal.prompt(self.model.config, text, self.spec.visual_tokens)
        return prompt | {"pixel_values": nominal.tiles(self.model.config, self.spec)}
