"""The model inside what wraps it: PEFT, ``torch.compile``, data parallelism."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenprune.core.errors import ModelError

HOLDERS = ("_orig_mod", "module")  # torch.compile's; DistributedDataParallel's, DataParallel's and DeepSpeed's

EMBEDDED = (
    "the prompt reaches the model as embeddings or through a cache, as prompt, prefix and P-tuning of PEFT have it, so "
    "that it is not known where the images are; use LoRA, or prune the model without it"
)


def unwrapped(model: Any) -> Any:
    """The transformers model that a wrapper runs in the end; the model itself if nothing wraps it.

    Raises:
        ModelError: if the wrapper hides the prompt.
    """
    while True:
        inside = [part for name in HOLDERS if isinstance(part := getattr(model, name, None), nn.Module)]
        if inside:
            model = inside[0]
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
                raise ModelError(EMBEDDED)
            model = model.get_base_model()
        else:
            return model
