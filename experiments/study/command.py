"""How a script ends: a user's mistake is one sentence and exit status 2, as with the command ``tokenprune``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tokenprune.cli.main import INTERRUPTED, USER_ERROR
from tokenprune.core.errors import TokenPruneError


@contextmanager
def ending(name: str) -> Iterator[None]:
    """Leaves the program where the block cannot go on because of its user; a traceback is for its own mistakes.

    Args:
        name: of the script; the sentence begins with it.
    """
    try:
        yield
    except TokenPruneError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr
        )
        raise SystemExit(INTERRUPTED) from None
