"""Fixtures that several parts use, and which cases are left to ``-m full``."""

import gc

import pytest


@pytest.fixture
def llava():
    """A tiny LLaVA and its processor, shared by all tests: leave it as it is."""
    from tokenprune.testing.families.llava import shared_llava  # not where pytest starts its processes

    return shared_llava("sdpa")


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    """Mark what a covering design of the cases leaves out."""
    spare_eager(items)
    spare_pairs(items)
    items.sort(key=lambda item: not item.path.match("sweeps/launch/test_*.py"))  # what takes longest begins at once


def spare_eager(items):
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


def spare_pairs(items):
    """Of pruners and families, masking runs for all pairs, and what else they promise for a quarter of them in turn."""
    families = {}
    for item in items:
        if item.path.match("pruners/test_contract.py") and "family" in getattr(item, "fixturenames", ()):
            families.setdefault(item.callspec.id, {}).setdefault(item.originalname, []).append(item)
    for turn, promises in enumerate(families.values()):
        for name, cases in promises.items():
            for number, item in enumerate(cases):
                if name != "test_dropping_is_masking" and (turn + number) % min(4, len(cases)):
                    item.add_marker(pytest.mark.full)
