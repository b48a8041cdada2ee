"""tokenprune: visual token pruning for multimodal LLMs.

The public names below are all a user needs; they are imported when first used, so that ``import tokenprune`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenprune.version import __version__

if TYPE_CHECKING:
    from tokenprune.adapters.base import ModelAdapter
    from tokenprune.adapters.known import register_adapter
    from tokenprune.budget import Budget
    from tokenprune.embedded.model import load_embedded
    from tokenprune.errors import TokenPruneError
    from tokenprune.pruners.base import Pruner, ScorePruner, create_pruner, register_pruner
    from tokenprune.pruning import Attached, Trace, UnprunedWarning, attach, prune
    from tokenprune.timm_vit.prune import prune_vit
    from tokenprune.types import ModelSpec, OperationPlan, Signal, TokenSelection, VisualTokens

_HOMES = {
    "Attached": "pruning",
    "Budget": "budget",
    "ModelAdapter": "adapters.base",
    "ModelSpec": "types",
    "OperationPlan": "types",
    "Pruner": "pruners.base",
    "ScorePruner": "pruners.base",
    "Signal": "types",
    "TokenPruneError": "errors",
    "TokenSelection": "types",
    "Trace": "pruning",
    "UnprunedWarning": "pruning",
    "VisualTokens": "types",
    "attach": "pruning",
    "create_pruner": "pruners.base",
    "load_embedded": "embedded.model",
    "prune": "pruning",
    "prune_vit": "timm_vit.prune",
    "register_adapter": "adapters.known",
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
