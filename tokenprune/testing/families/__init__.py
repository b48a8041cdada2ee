"""Tiny models of the adapters' families, how to ask them, and what their language models do with a prompt.

The file of an adapter's name holds ``FAMILIES``: a ``Family`` for each kind of model that the adapter serves.
"""

from importlib import import_module
from importlib.util import find_spec

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.testing.families.base import Family

__all__ = ["Family", "families"]


def families(adapter: str | None = None) -> dict[str, Family]:
    """Families that this package has tiny models of, by name.

    Args:
        adapter: whose; those of all adapters if None.
    """
    found: dict[str, Family] = {}
    for name in [adapter] if adapter else ADAPTERS.names():
        module = f"{__name__}.{name}"
        if find_spec(module):  # an adapter of somebody else has its families elsewhere
            found |= import_module(module).FAMILIES
    return found
