"""A selection is that of its tokens, whatever precision, dtype and device a caller has set around it."""

import pytest
import torch

from tokenprune import VisualTokens, create_pruner
from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.farthest import max_min
from tokenprune.functional.greedy import lazy_greedy, stepwise_greedy
from tokenprune.functional.kernels import KERNELS, KernelMatrix
from tokenprune.testing.surroundings import AUTOCAST, HARMLESS
from tokenprune.testing.tokens import make

CASES = [  # options that the contract does not have
    ("cdpruner", {"conditioning": "prompt_embedding"}),
    ("cdpruner", {"conditioning": "none", "kernel": "rbf"}),
    ("cdpruner", {"conditioning": "none", "kernel": "laplacian"}),
    ("sparsevlm", {"version": "plus"}),
    ("sparsevlm", {"noise": 0.5}),
    ("sparsevlm", {"count": "rank", "rank_scale": 1.0}),
]


@pytest.mark.parametrize("around", {**HARMLESS, **AUTOCAST})
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_changes_nothing(name, options, around):
    batch = 1 if options.get("count") == "rank" else 3
    pruner, tokens = create_pruner(name, **options), make(batch)
    wanted = pruner.select(tokens, 9)
    with {**HARMLESS, **AUTOCAST}[around]():
        found = create_pruner(name, **options).select(tokens, 9)
    for field in ("keep", "order", "scores", "merged"):
        ours, theirs = getattr(found, field), getattr(wanted, field)
        assert ours is theirs is None or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype)


@pytest.mark.parametrize("around", {**HARMLESS, **AUTOCAST})
@pytest.mark.parametrize("name", ["divprune", "cdpruner", "random"])
def test_at_the_size_of_a_model(name, around):
    """Of 576 tokens, rounding would change many picks."""
    torch.manual_seed(0)
    features = torch.randn(1, 576, 256) + 2 * torch.randn(1, 1, 256)
    tokens = VisualTokens(features)
    pruner = create_pruner(name, **({"conditioning": "none"} if name == "cdpruner" else {}))
    wanted = pruner.select(tokens, 64)
    with {**HARMLESS, **AUTOCAST}[around]():
        assert torch.equal(pruner.select(tokens, 64).keep, wanted.keep)


@pytest.mark.parametrize("around", AUTOCAST)
@pytest.mark.parametrize("loop", [lazy_greedy, stepwise_greedy])
@pytest.mark.parametrize("kernel", KERNELS)
def test_picks_without_a_pruner(kernel, loop, around):
    """Of ``functional`` alone."""
    features = torch.randn(2, 100, 32, generator=torch.Generator().manual_seed(0))

    def picks():
        matrix = KernelMatrix.of(features, kernel)
        return torch.cat([greedy_map(matrix, 12, loop=loop), max_min(features, 12, loop=loop)])

    wanted = picks()
    with AUTOCAST[around]():
        assert torch.equal(picks(), wanted)
