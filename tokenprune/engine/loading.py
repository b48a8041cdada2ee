"""Load a checkpoint with its processor, checking all that can be checked before the weights are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.registry import adapter_class, served
from tokenprune.core.errors import ConfigError, ModelError, hint
from tokenprune.core.sample import Sample
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.steps import Step
from tokenprune.engine.auto_check import auto_adapter
from tokenprune.engine.processor_options import check_system, mean_colour, with_options
from tokenprune.engine.prompt.question import check_shown, check_words
from tokenprune.engine.providers.base import Facts, stand_ins
from tokenprune.engine.providers.steps import check_steps
from tokenprune.engine.session import Session

DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config is read and whose weights are not.

    Attributes:
        path: hub id or folder.
        adapter: class of its adapter.
        config: of the model.
        spec: its sizes.
        device: where the weights will be.
        options: of the model's ``from_pretrained``.
        text_tower, scope: see ``ModelAdapter``.
        commit: of the hub's repository; None for a folder.
        processor: options of its pictures and videos, see ``with_options``.
        system: what the system says before each question; empty for nothing of ours.
        square: whether pictures are padded to squares with the processor's mean colour.
    """

    path: str
    adapter: type[ModelAdapter]
    config: Any
    spec: ModelSpec
    device: torch.device
    options: Mapping[str, Any]
    text_tower: str | None
    scope: str | None
    commit: str | None = None
    processor: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    square: bool = False

    def check_steps(self, steps: Sequence[Step]) -> None:
        """Raise ModelError unless the model can do these steps of a pruner, with a text tower if one is needed."""
        check_steps(steps, self.facts)

    @property
    def facts(self) -> Facts:
        """What is known of the model before its weights."""
        return Facts(self.adapter, self.config, self.text_tower)

    def stand_ins(self, steps: Sequence[Step]) -> list[str]:
        """What stands in for signals that steps read before the LLM and the model does not give, in sentences."""
        early = [step.selector.requires for step in steps if step.stage.place in ("projector", "pre_llm")]
        return [sentence for requires in early for sentence in stand_ins(requires, self.facts)]

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raise ModelError, which says where it is written, if the model cannot be asked a sample; no weights load.

        What is said of the processor is checked, too: ConfigError if it has no such option.
        """
        processor = self._processor()
        check_system(processor, self.system)
        if self.square:
            mean_colour(processor)
        check_shown(self.adapter, processor, samples)
        check_words(processor, samples)

    def _processor(self) -> Any:
        return with_options(_load(AutoProcessor, self.path), self.processor)

    def load(self) -> Session:
        """Load processor and weights.

        Raises:
            ModelError: if they cannot be loaded.
            ConfigError: if the processor has no such option.
        """
        processor = self._processor()
        check_system(processor, self.system)
        padding = mean_colour(processor) if self.square else None
        model = _load(AutoModelForImageTextToText, self.path, **self.options)
        placed = model.eval() if "device_map" in self.options else model.eval().to(self.device)
        adapter = self.adapter(placed, processor, text_tower=self.text_tower, scope=self.scope)
        return Session(adapter, self.system, padding)


def find_checkpoint(
    path: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    text_tower: str | None = None,
    scope: str | None = None,
    device_map: str | None = None,
    processor: Mapping[str, Any] | None = None,
    system: str = "",
    square: bool = False,
) -> Checkpoint:
    """Read the config of a checkpoint, and check that it can run as wanted.

    Args:
        path: hub id or folder of the checkpoint.
        dtype: of the weights.
        device: where to, such as ``cpu`` or ``cuda:1``.
        attention: implementation of attention in the LLM and the vision tower.
        text_tower: see ``ModelAdapter``.
        scope: likewise.
        device_map: ``auto`` lets accelerate spread the weights over what devices there are; None uses ``device``.
        processor: see ``Checkpoint``.
        system: likewise.
        square: likewise.

    Raises:
        ConfigError: if dtype, device or attention are unknown, or do not go together, or accelerate is missing.
        ModelError: if there is no such checkpoint, no adapter knows it, or its adapter has no such scope.
    """
    place, options = running(dtype, device, attention)
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise ConfigError(f"device_map {device_map!r} needs the package accelerate; pip install accelerate")
        options["device_map"] = device_map
    config = _load(AutoConfig, path)
    adapter = adapter_class(config.model_type)
    adapter.check_scope(scope)
    commit = getattr(config, "_commit_hash", None)
    spec = adapter.spec_from_config(config)
    found = Checkpoint(path, adapter, config, spec, place, options, text_tower, scope, commit)
    return replace(found, processor=processor or {}, system=system, square=square)


def running(dtype: str, device: str, attention: str) -> tuple[torch.device, dict[str, Any]]:
    """Where a model will be, and options of its ``from_pretrained``; arguments and errors of ``find_checkpoint``."""
    place = device_of(device)
    if attention not in ATTENTION:
        raise ConfigError(f"attention is {attention!r}; {hint(attention, ATTENTION)}")
    # transformers casts the mask to float32, where the minimum of float64 overflows.
    if (dtype, attention) == ("float64", "eager"):
        raise ConfigError("eager attention gives NaN for padded prompts in float64; use attention sdpa, or float32")
    return place, {"dtype": dtype_of(dtype, place), "attn_implementation": attention}


def config_of(values: Mapping[str, Any]) -> Any:
    """The config of a model from what its ``config.json`` says."""
    return AutoConfig.for_model(**copy.deepcopy(dict(values)))


def session_for(model: Any, processor: Any, **options: Any) -> Session:
    """A session with a model that is loaded already; see ``adapter_for``."""
    return Session(adapter_for(model, processor, **options))


def adapter_for(model: Any, processor: Any, **options: Any) -> ModelAdapter:
    """The adapter of a loaded model, found by its type; one that is checked on the spot if none knows it.

    Args:
        model: the model.
        processor: that belongs to it.
        **options: of ``ModelAdapter``.

    Raises:
        ModelError: if the model cannot be pruned, or the processor is another model's.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type and model_type not in served():
        return auto_adapter(model, processor, **options)
    return adapter_class(model_type)(model, processor, **options)


def _load(kind: Any, path: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"model {path!r} cannot be loaded: {reason}") from error


def device_of(name: str) -> torch.device:
    """The device of a name; ConfigError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        raise ConfigError(f"device {name!r} cannot be used here; use cpu{f' or {found}' if found else ''}") from None
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of numbers of a name; ConfigError if there is none, or the device cannot compute in it."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype is {name!r}; {hint(name, DTYPES)}")
    try:  # what a model does, in small
        x = torch.ones(1, 1, 4, 4, device=device).to(dtype)
        x = functional.conv2d(x, x).expand(1, 1, 4, 4)
        x = functional.gelu(functional.layer_norm(functional.linear(x, x[0, 0]), (4,)))
        functional.scaled_dot_product_attention(x, x, x)
    except (RuntimeError, NotImplementedError):
        raise ConfigError(f"{str(device)!r} cannot compute in dtype {name!r}; allowed: {', '.join(DTYPES)}") from None
    return dtype
