"""Fixtures that several parts use."""

import pytest

from tokenprune.testing.families.llava import shared_llava


@pytest.fixture
def llava():
    """A tiny LLaVA and its processor, shared by all tests: leave it as it is."""
    return shared_llava("sdpa")
