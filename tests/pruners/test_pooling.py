import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.budget import Budget
from tokenprune.core.errors import SelectionError
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.testing.families import families

X = torch.randn(2, 144, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("k", "shape"), [(36, (6, 6)), (24, (4, 6)), (16, (4, 4)), (8, (2, 4)), (144, (12, 12))])
def test_it_is_torch_s_average_pooling_where_the_grid_divides(k, shape):
    selection = create_pruner("pooling").select(VisualTokens(X, grid=(12, 12)), k)
    wanted = adaptive_avg_pool2d(X.mT.view(2, 5, 12, 12), shape).flatten(2).mT
    torch.testing.assert_close(selection.merged, wanted)
    assert selection.keep.shape == (2, k)


def test_elsewhere_each_token_counts_once():
    for k in (5, 47, 101):
        merged = create_pruner("pooling").select(VisualTokens(X, grid=(12, 12)), k).merged
        assert merged.shape == (2, k, 5)
        constant = create_pruner("pooling").select(VisualTokens(torch.full((1, 144, 2), 7.0), grid=(12, 12)), k).merged
        assert (constant == 7).all()
    ramp = torch.arange(12.0).repeat_interleave(12)[None, :, None]  # the row of each token
    merged = create_pruner("pooling").select(VisualTokens(ramp, grid=(12, 12)), 47).merged
    assert (merged.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_do_not_overflow_in_half_precision(dtype):
    features = torch.full((1, 144, 2), 30000.0, dtype=dtype)
    merged = create_pruner("pooling").select(VisualTokens(features, grid=(12, 12)), 1).merged
    assert merged.dtype == dtype
    assert torch.equal(merged, features[:, :1])


def test_without_a_grid_it_is_refused():
    with pytest.raises(SelectionError, match="pooling needs visual tokens in a grid, and these rows have none"):
        create_pruner("pooling").select(VisualTokens(X), 4)


@pytest.mark.parametrize("name", families())
def test_the_language_model_gets_the_means(name):
    """In each scope of each family: the tokens that enter are the means of the grids, or there is one sentence."""
    family = families()[name]
    model, processor = family.build("sdpa")
    inputs, pruner = family.ask(processor, 1, 2), create_pruner("pooling")
    for scope in family.scopes:
        adapter = adapter_for(model, processor, scope=scope)
        layout, whole = Session(adapter).encode(inputs).layout, Session(adapter).encode(inputs).features
        if None in layout.grids:
            with pytest.raises(SelectionError, match="pooling needs visual tokens in a grid"):
                Session(adapter).prune_inputs(inputs, pruner, Budget(keep_tokens=4))
            continue
        pruned = Session(adapter).prune_inputs(inputs, pruner, Budget(keep_tokens=4))
        assert pruned.chosen
        entered = torch.zeros_like(whole)
        entered[pruned.kept] = torch.cat([x.reshape(-1, whole.shape[1]) for x in outputs(adapter, pruned)])
        for choice in pruned.chosen:
            for unit, keep in zip(choice.units, choice.selection.keep, strict=True):
                grid, tokens = layout.grids[unit], layout.units[unit]
                alone = pruner.select(VisualTokens(whole[tokens][None], grid=grid), len(keep))
                torch.testing.assert_close(entered[tokens[keep]], alone.merged[0])


def outputs(adapter, pruned):
    """What enters, in the order of the placeholders: single modality, or the features that the prompt gets."""
    given = pruned.inputs["mm_encoder_outputs"]
    order = []
    for modality, output in given.items():
        parts = output.pooler_output
        at = adapter.placeholders(pruned.inputs["input_ids"], modality)[
            adapter.placeholders(pruned.inputs["input_ids"])
        ]
        flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        order.append((at.nonzero()[:, 0], flat))
    where, flat = torch.cat([at for at, _ in order]), torch.cat([x for _, x in order])
    return [flat[where.argsort()]]
