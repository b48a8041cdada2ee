"""A block in which files are written as somebody who may not write anywhere."""

import os
from contextlib import contextmanager


@contextmanager
def unprivileged():
    """Root may write anywhere, so that a test of permissions must not be root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
