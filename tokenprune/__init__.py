"""tokenprune: visual token pruning for multimodal LLMs.

The public names below are all a user needs; they are imported when first used, so that ``import tokenprune`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenprune.version import __version__

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter
    from tokenprune.adapters.registry import register_adapter
    from tokenprune.core.budget import Budget
    from tokenprune.core.errors import TokenPruneError
    from tokenprune.core.plan import OperationPlan
    from tokenprune.core.selection import TokenSelection
    from tokenprune.core.signals import Signal
    from tokenprune.core.sizes import ModelSpec
    from tokenprune.core.tokens import VisualTokens
    from tokenprune.embedded.model import load_embedded
    from tokenprune.engine.attach.prune import Attached, Trace, UnprunedWarning, attach, prune
    from tokenprune.engine.tower.prune import prune_vit
    from tokenprune.pruners.base import Pruner, ScorePruner, create_pruner, register_pruner

_HOMES = {
    "Attached": "engine.attach.prune",
    "Budget": "core.budget",
    "ModelAdapter": "adapters.base",
    "ModelSpec": "core.sizes",
    "OperationPlan": "core.plan",
    "Pruner": "pruners.base",
    "ScorePruner": "pruners.base",
    "Signal": "core.signals",
    "TokenPruneError": "core.errors",
    "TokenSelection": "core.selection",
    "Trace": "engine.attach.prune",
    "UnprunedWarning": "engine.attach.prune",
    "VisualTokens": "core.tokens",
    "attach": "engine.attach.prune",
    "create_pruner": "pruners.base",
    "load_embedded": "embedded.model",
    "prune": "engine.attach.prune",
    "prune_vit": "engine.tower.prune",
    "register_adapter": "adapters.registry",
    "register_pruner": "pruners.base",
}

__all__ = [
    "Attached",
    "Budget",
    "ModelAdapter",
    "ModelSpec",
    "OperationPlan",
    "Pruner",
    "ScorePruner",
    "Signal",
    "TokenPruneError",
    "TokenSelection",
    "Trace",
    "UnprunedWarning",
    "VisualTokens",
    "__version__",
    "attach",
    "create_pruner",
    "load_embedded",
    "prune",
    "prune_vit",
    "register_adapter",
    "register_pruner",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")
    value = getattr(import_module(f"tokenprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
