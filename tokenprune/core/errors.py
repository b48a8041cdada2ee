"""Errors that a user can cause. Each message is one sentence: what, where, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokenPruneError(ValueError):
    """A user's mistake; the command line prints its message without a traceback and exits with status 2."""


class RegistryError(TokenPruneError):
    """A name that is unknown, malformed or taken, or a plug-in that does not import."""


class ConfigError(TokenPruneError):
    """A key, an option or a value that a configuration may not have."""


class BudgetError(TokenPruneError):
    """A budget that is contradictory or cannot be met."""


class BudgetExceedsError(BudgetError):
    """A budget that allows more visual tokens than there are."""


class SelectionError(TokenPruneError):
    """Visual tokens or a selection that break their contract (shapes, missing signals, non-finite values)."""


class ModelError(TokenPruneError):
    """A model, processor or set of inputs that no adapter can handle."""


class DataError(TokenPruneError):
    """An image, sample or results file that cannot be read."""


def hint(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message about an unknown name: a near match if there is one, and what is allowed.

    Args:
        name: what the user wrote.
        allowed: what could have been written.

    Returns:
        For example ``did you mean 'cdpruner'? Allowed: cdpruner, divprune``.
    """
    options = sorted(allowed)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    listing = f"Allowed: {', '.join(options) or 'nothing'}"
    return f"did you mean {near[0]!r}? {listing}" if near else listing
