"""Where a module computes, which its weights do not always tell."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module, given: torch.device) -> torch.device:
    """The device on which a module computes.

    With a ``device_map``, accelerate moves what a module is given to where it computes, but after our hooks have run.
    Weights that it keeps on disk or in the CPU's memory are on ``meta``, or on the CPU, until then.

    Args:
        module: the module.
        given: if neither hooks nor weights tell.
    """
    if (told := _told(module)) is not None:
        return told
    weight = next(module.parameters(), None)
    if weight is not None and weight.device.type != "meta":
        return weight.device
    return next((told for part in module.modules() if (told := _told(part)) is not None), given)


def _told(module: nn.Module) -> torch.device | None:
    """The device that accelerate's hook on a module names, or None."""
    hook = getattr(module, "_hf_hook", None)
    told = (getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,)))
    device = next((device for device in told if device is not None), None)
    return None if device is None else torch.device(device)
