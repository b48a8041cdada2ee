"""Fixtures that several parts use, and which cases are left to ``-m full``."""

import pytest

from tokenprune.testing.families.llava import shared_llava


@pytest.fixture
def llava():
    """A tiny LLaVA and its processor, shared by all tests: leave it as it is."""
    return shared_llava("sdpa")


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    """All cases run under sdpa; under eager attention, the last of each test and family."""
    eager = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if any(value == "eager" for value in params.values() if isinstance(value, str)):
            family = params.get("family", params.get("name"))
            eager.setdefault((item.parent, item.originalname, str(family)), []).append(item)
    for _, *others in (cases[::-1] for cases in eager.values()):
        for item in others:
            item.add_marker(pytest.mark.full)
