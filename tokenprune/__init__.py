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
    from tokenprune.core import signals, stages
    from tokenprune.core.budget import Budget
    from tokenprune.core.errors import TokenPruneError
    from tokenprune.core.plan import OperationPlan
    from tokenprune.core.quota import Quota
    from tokenprune.core.selection import TokenSelection
    from tokenprune.core.signals import Signal
    from tokenprune.core.sizes import ModelSpec
    from tokenprune.core.stages import Stage
    from tokenprune.core.tokens import VisualTokens
    from tokenprune.embedded.model import load_embedded
    from tokenprune.engine.attach.prune import Attached, Trace, UnprunedWarning, attach, prune
    from tokenprune.engine.providers.base import provides
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
    "Quota": "core.quota",
    "Signal": "core.signals",
    "Stage": "core.stages",
    "TokenPruneError": "core.errors",
    "TokenSelection": "core.selection",
    "Trace": "engine.attach.prune",
    "UnprunedWarning": "engine.attach.prune",
    "VisualTokens": "core.tokens",
    "attach": "engine.attach.prune",
    "create_pruner": "pruners.base",
    "load_embedded": "embedded.model",
    "provides": "engine.providers.base",
    "prune": "engine.attach.prune",
    "prune_vit": "engine.tower.prune",
    "register_adapter": "adapters.registry",
    "register_pruner": "pruners.base",
    "signals": "core.signals",
    "stages": "core.stages",
}

__all__ = [
    "Attached",
    "Budget",
    "ModelAdapter",
    "ModelSpec",
    "OperationPlan",
    "Pruner",
    "Quota",
    "ScorePruner",
    "Signal",
    "Stage",
    "TokenPruneError",
    "TokenSelection",
    "Trace",
    "UnprunedWarning",
    "VisualTokens",
    "__version__",
    "attach",
    "create_pruner",
    "load_embedded",
    "provides",
    "prune",
    "prune_vit",
    "register_adapter",
    "register_pruner",
    "signals",
    "stages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenprune' has no attribute {name!r}")
    module = import_module(f"tokenprune.{_HOMES[name]}")
    value = module if _HOMES[name].endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
