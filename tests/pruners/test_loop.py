"""The option ``loop`` of the pruners that pick greedily."""

import pytest
import torch

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.functional.loops import LOOPS

PRUNERS = [("cdpruner", {"conditioning": "none"}), ("divprune", {})]


@pytest.mark.parametrize(("name", "options"), PRUNERS)
def test_the_loop_that_is_asked_for_runs_and_picks_the_same(monkeypatch, name, options):
    tokens, ran = VisualTokens(torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))), []
    for loop, run in list(LOOPS.items()):
        monkeypatch.setitem(LOOPS, loop, lambda *given, loop=loop, run=run: (ran.append(loop), run(*given))[1])
    orders = [create_pruner(name, **options, loop=loop).select(tokens, 8).order for loop in LOOPS]
    assert ran == list(LOOPS)
    assert all(torch.equal(order, orders[0]) for order in orders)


@pytest.mark.parametrize(("name", "options"), PRUNERS)
def test_an_unknown_loop_is_refused_when_the_pruner_is_made(name, options):
    with pytest.raises(ConfigError, match="option 'loop' is 'step'; did you mean 'steps'"):
        create_pruner(name, **options, loop="step")
