"""Policies of a model of six layers, as a fit would find them, and fixtures of them."""

from dataclasses import replace

import pytest

from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.pruners.dop.cost import flops, milliseconds
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.pruners.dop.policy import Limit, Objective, Origin, Policy
from tokenprune.pruners.dop.solve import solve

SPEC = ModelSpec(TransformerSpec(6, 32, 88, 4, 2, 8, 3), vocabulary=50, visual_tokens=40)
TEXT = 7


def fitted(kind="flops", share=0.5, **options):
    """Options are those of ``Curves.of``: ``query`` and ``update_only``."""
    curves = Curves.of(
        6,
        40,
        attention={1: 1.7, 2: 0.9, 4: 0.11},
        mlp={0: 0.4, 1: 0.45, 3: 0.02},
        tokens={5: 0.8, 10: 0.3, 20: 0.1},
        **options,
    )
    latency = LatencyModel((0.3, 0.02, 0.05, 0.001), (0.2, 0.07)) if kind == "milliseconds" else None
    cost = milliseconds(latency, TEXT) if latency else flops(SPEC, TEXT)
    ((whole, *_),) = solve(curves, cost, [1e12])
    (candidates,) = solve(curves, cost, [share * whole.cost], top=3)
    return Policy(
        origin=Origin(model="embedded", weights="012345678901", data="1e0000000001", code="abcdef012345"),
        base={"name": "cdpruner", "theta": 0.5, "conditioning": {"name": "none"}},
        objective=Objective(samples=100, attention="update_only" if curves.update_only else "remove"),
        curves=curves,
        budget=Limit(kind=kind, value=share * whole.cost, text_tokens=TEXT, latency=latency),
        chosen=replace(candidates[1], measured=0.25),
        candidates=tuple(candidates),
    )


CASES = {
    "two_depths": {},
    "three_depths": {"query": {1: 0.7, 3: 0.2}},
    "update_only": {"update_only": True},
    "milliseconds": {"kind": "milliseconds", "share": 0.8},
}


@pytest.fixture(params=CASES)
def policy(request):
    return fitted(**CASES[request.param])


@pytest.fixture
def two_depths():
    return fitted()


@pytest.fixture
def spec():
    return SPEC
