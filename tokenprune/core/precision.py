"""What a caller may have switched on around us, and our own arithmetic should not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def exact(device: torch.device) -> AbstractContextManager[None]:
    """A block in which tensors on the device keep their precision under the caller's ``torch.autocast``.

    It is for arithmetic of our own, and for models of our own, not for modules of the caller's model: those compute as
    the caller wants them to.
    """
    known = torch.amp.is_autocast_available(device.type)
    on = known and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


@contextmanager
def on_cpu_unless_said() -> Iterator[None]:
    """A block in which tensors without a device are made on the CPU, whatever default device the caller has set."""
    # Entered only if needed: in such a context each operation costs more.
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


@contextmanager
def modules_as_usual() -> Iterator[None]:
    """A block in which libraries make modules as they do unless told otherwise: in float32, on the CPU."""
    before = torch.get_default_dtype()
    if before != torch.float32:  # it is of the whole process: left alone where it is as it should be
        torch.set_default_dtype(torch.float32)
    try:
        with on_cpu_unless_said():
            yield
    finally:
        if before != torch.float32:
            torch.set_default_dtype(before)
