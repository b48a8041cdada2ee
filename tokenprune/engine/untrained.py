"""A model's sizes with random weights, as deep as one likes: costs without a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from tokenprune.adapters.registry import adapter_class
from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.engine.loading import Checkpoint, running
from tokenprune.engine.session import Session
from tokenprune.towers.nominal import MARKER

QUESTION = 8  # tokens of any


@dataclass(frozen=True)
class Untrained(Checkpoint):
    """A checkpoint that does not exist: its weights are drawn when it loads, and its processor knows no words."""

    def load(self) -> Session:
        """Make the model; the same weights each time.

        Raises:
            ModelError: if its parts do not go together at this depth.
        """
        try:
            with torch.random.fork_rng(), self.device:
                torch.manual_seed(0)
                model = AutoModelForImageTextToText.from_config(self.config, **self.options)
        except (ValueError, ImportError, IndexError) as error:
            raise ModelError(f"model {self.path!r} cannot be made: {error}") from error
        model.generation_config.pad_token_id = model.generation_config.eos_token_id = 0
        return Session(self.adapter(model.eval(), _wordless(self.config), scope=self.scope))


def untrained(
    name: str,
    config: Any,
    *,
    layers: int | None = None,
    vision_layers: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    scope: str | None = None,
) -> Untrained:
    """Cut a model to the depth that is asked for.

    Args:
        name: for messages.
        config: of the model; it is changed.
        layers: of the LLM; None for all.
        vision_layers: of the vision tower; None for all.
        dtype: see ``find_checkpoint``, as for all that follow.
        device: where to.
        attention: implementation.
        scope: of the adapter.

    Raises:
        ConfigError: if it has fewer layers, or cannot run as wanted.
        ModelError: if it has no such scope.
    """
    _cut(config.text_config, layers, f"{name}: layers")
    _cut(config.vision_config, vision_layers, f"{name}: vision_layers")
    # What a card need not say, as no size depends on it.
    config.image_token_id = min(config.image_token_id, config.text_config.vocab_size - 1)
    adapter = adapter_class(config.model_type)
    adapter.check_scope(scope)
    place, options = running(dtype, device, attention)
    return Untrained(name, adapter, config, adapter.spec_from_config(config), place, options, None, scope)


def _cut(config: Any, layers: int | None, what: str) -> None:
    """Take the first layers alone."""
    name = "depth" if hasattr(config, "depth") else "num_hidden_layers"
    most = getattr(config, name)
    if layers is None:
        return
    if not 1 <= layers <= most:
        raise ConfigError(f"{what} must be from 1 to {most}, got {layers}")
    setattr(config, name, layers)
    if getattr(config, "layer_types", None):  # of a decoder with sliding windows in some
        config.layer_types = config.layer_types[:layers]


class _Tokenizer:
    """One token says everything."""

    pad_token_id = 0

    def __call__(self, texts: Any, *, return_tensors: str | None = None, **_: Any) -> dict[str, Any]:
        if return_tensors is None:
            return {"input_ids": [MARKER]}
        ids = torch.full((len(texts), QUESTION), MARKER)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def batch_decode(self, ids: Any, **_: Any) -> list[str]:
        return [""] * len(ids)


def _wordless(config: Any) -> Any:
    """What an adapter asks of a processor."""
    options = {"image_token_id": config.image_token_id, "image_processor": None, "global_image_token": "marker"}
    return SimpleNamespace(tokenizer=_Tokenizer(), **options)
