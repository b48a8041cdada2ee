"""What people do around ``tp.prune`` with a model: all cases, in the order of the table in ``docs/concepts.md``."""

# isort: off
# ruff: noqa: F401 - the order of the table
from block_cases.base import CASES, PLACES, Subject
from block_cases import arguments, callbacks, blocks, caches, around, gradients

__all__ = ["CASES", "PLACES", "Subject"]
