"""Contracts for pruners, adapters and tasks: subclass one in a test file of your own, and pytest runs what it asks.

It needs pytest, which ``pip install tokenprune-mllm[dev]`` brings, and is imported by nothing else of the package.
"""

import pytest

# So that a broken promise says what was found, and not only where.
_PARTS = ("adapter_contract", "adapter_state", "checks", "pruner_contract", "pruner_on_models", "task_contract")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from tokenprune.testing.adapter_contract import AdapterContract  # noqa: E402
from tokenprune.testing.families.base import Family  # noqa: E402
from tokenprune.testing.pruner_contract import PrunerContract  # noqa: E402
from tokenprune.testing.task_contract import TaskContract  # noqa: E402

__all__ = ["AdapterContract", "Family", "PrunerContract", "TaskContract"]
