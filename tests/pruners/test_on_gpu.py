"""Methods before the LLM choose on a GPU, which is simulated, what they choose on the CPU."""

import pytest
import torch
from simcuda import Machine, Simulated

from tokenprune import VisualTokens, create_pruner
from tokenprune.testing.tokens import N, make

METHODS = {
    "fastervlm": {},
    "hiprune": {"alpha": 1.0},
    "hiprune sequence": {"alpha": 1.0, "neighbours": "sequence"},
    "holov": {},
    "mmtok": {},
    "prumerge": {},
    "prumerge plus": {"plus": True},
    "prumerge repeat": {"plus": True, "repeat": True},
    "prumerge outliers": {"plus": True, "count": "outliers"},
    "prunesid": {},
    "scope": {},
    "trim": {},
    "trim outliers": {"count": "outliers"},
    "vispruner": {},
    "visionzip": {},
    "vscan": {"window": 2},
}
GRID_ONLY = ("hiprune", "vscan")  # they refuse rows of several lengths
FIELDS = ("keep", "order", "sequence", "merged", "into")


def tokens(kind):
    """Rows without padding, with some of them, or with CLS among the tokens."""
    made = make(valid=torch.arange(N) < torch.tensor([[N], [20], [N]])) if kind == "padded" else make()
    special = torch.arange(N) == 0 if kind == "cls" else None
    return VisualTokens(made.features, made.signals, grid=made.grid, valid=made.valid, special=special)


def on_gpu(x):
    def move(value):
        return None if value is None else value.to("cuda:0")

    signals = {name: move(value) for name, value in x.signals.items()}
    return VisualTokens(move(x.features), signals, grid=x.grid, valid=move(x.valid), special=move(x.special))


CASES = [
    (name, kind)
    for name in METHODS
    for kind in ("whole", "padded", "cls")
    if kind != "padded" or not name.startswith(GRID_ONLY)
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_chooses_what_it_chooses_on_the_cpu(name, kind):
    pruner, given = create_pruner(name.split()[0], **METHODS[name]), tokens(kind)
    wanted = pruner.select(given, 11)
    with Machine():
        found = pruner.select(on_gpu(given), 11)
    for field in FIELDS:
        ours, theirs = getattr(found, field), getattr(wanted, field)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert isinstance(ours, Simulated)
            torch.testing.assert_close(ours.held, theirs)
