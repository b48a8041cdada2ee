"""Files of a third party, run for one test: what they register is forgotten afterwards."""

import runpy
from pathlib import Path

import pytest

import tokenprune as tp
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.core.signals.base import KINDS, PLAIN
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.engine.providers import base as providers
from tokenprune.functional.kernels import KERNELS
from tokenprune.pruners.base import PRUNERS
from tokenprune.report.sections import SECTIONS
from tokenprune.tasks.base import TASKS


@pytest.fixture
def outside(monkeypatch):
    """Runs a file of this folder, and returns its names."""
    for registry in (PRUNERS, ADAPTERS, TASKS, CONDITIONINGS):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    providers.provider_of(tp.signals.PromptMask())
    kept = [(known, dict(known)) for known in (KINDS, PLAIN, providers._PROVIDERS, KERNELS, CONVENTIONS, SECTIONS)]
    yield lambda name: runpy.run_path(str(Path(__file__).parent / name))
    for known, before in kept:
        known.clear()
        known.update(before)
