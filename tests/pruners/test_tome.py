import pytest
import timm
import torch
from golden_data import load
from golden_towers import golden_tower, pruned_by

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.core.stages import tower
from tokenprune.pruners.tome import matched
from tokenprune.testing.pruner_on_models import TINY
from tokenprune.towers.timm_sizes import vit_spec

TOME, PROPORTIONAL = create_pruner("tome"), create_pruner("tome", proportional=True)


def in_order(selection, x, number):
    """What is left of ``x`` (B, N, D), and how many patches each stands for, in the order of the official code."""
    order = (selection.labels % number).argsort(1)
    made = torch.stack([row[index] for row, index in zip(selection.apply(x), order, strict=True)])
    return made, (selection.labels // number + 1).gather(1, order)


def groups(selection, number):
    """Row of the output (B, N) that each patch is in."""
    place = torch.full((len(selection.keep), selection.num_tokens), -1)
    place.scatter_(1, selection.keep, selection.labels % number)
    return place.gather(1, selection.into)


def test_pairs_and_means_are_those_of_the_official_code():
    case = load("tome_match_n577_r96")
    tokens = VisualTokens(case["x"][:, 1:], {"mean_keys": case["metric"][:, 1:]})
    chosen = PROPORTIONAL.select(tokens, 480)
    made, sizes = in_order(chosen, tokens.features, 576)
    torch.testing.assert_close(made, case["output"][:, 1:], atol=2e-6 * float(made.abs().max()), rtol=0)
    assert torch.equal(sizes, case["size"][:, 1:].long())
    assert torch.equal(groups(chosen, 576) + 1, case["group"][:, 1:].long())


def test_a_chain_of_merges_is_that_of_the_official_code():
    case = load("tome_chain_3steps")
    x, history, into = case["x"][:, 1:], (), torch.arange(576)[None]
    place = labels = None
    for step, merged in enumerate((120, 100, 80)):
        metric = case[f"metric{step}"][:, 1:]
        if place is not None:
            metric = torch.stack([row[index] for row, index in zip(metric, place, strict=True)])
        tokens = VisualTokens(x, {"mean_keys": metric}, labels=labels, history=history)
        chosen = PROPORTIONAL.select(tokens, tokens.num_tokens - merged)
        into = torch.searchsorted(chosen.keep, chosen.into).gather(1, into)
        x, labels, history = chosen.apply(x), chosen.labels, (*history, tokens.num_tokens)
        place = labels % 576
    order = place.argsort(1)
    largest = float(x.abs().max())
    torch.testing.assert_close(x[0, order[0]], case["output"][0, 1:], atol=2e-6 * largest, rtol=0)
    assert torch.equal((labels // 576 + 1).gather(1, order), case["size"][:, 1:].long())
    assert torch.equal(place.gather(1, into) + 1, case["group"][:, 1:].long())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clip_tower_gives_what_it_gives_with_the_code_for_mllms(attention):
    case, session, inputs = golden_tower("tome_clip_lightcompress_r12", attention)
    pruned, features = pruned_by(session, inputs, TOME, 84)
    assert [int(kept.sum()) + 1 for _, kept in pruned.early] == case["tokens_after_layer"][:5].tolist()
    order = nearest(features[0], case["output"][0])
    largest = float(case["output"].abs().max())
    torch.testing.assert_close(features[0, order], case["output"][0], atol=2e-4 * largest, rtol=0)


def nearest(found, wanted):
    """For each wanted row, the row that was found nearest to it; all of them are distinct."""
    order = torch.cdist(wanted, found).argmin(1)
    assert sorted(order.tolist()) == list(range(len(found)))
    return order


def golden_vit(name):
    case = load(name)
    weights = {key.removeprefix("sd."): value for key, value in case.items() if key.startswith("sd.")}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=40, patch_size=4, embed_dim=32, depth=6, num_heads=2, mlp_ratio=2
    ).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not any("blocks" in key for key in missing)
    model.norm_pre.register_forward_hook(lambda *_: case["x_in"])
    model.norm = torch.nn.Identity()
    return case, model


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "eager"])
def test_a_classifier_gives_what_it_gives_with_the_official_code(fused):
    case, model = golden_vit("tome_timm_e2e_r8")
    for block in model.blocks:
        block.attn.fused_attn = fused
    with tp.prune_vit(model, PROPORTIONAL, keep_tokens=52) as trace:
        found = model.forward_features(torch.zeros(1, 3, 40, 40))[0]
    wanted = case["output"][0]
    assert [keep.shape[1] for keep in trace.stages.values()] == [92, 84, 76, 68, 60, 52]
    largest = float(wanted.abs().max())
    torch.testing.assert_close(found[nearest(found, wanted)], wanted, atol=2e-4 * largest, rtol=0)
    with tp.prune_vit(model, TOME, keep_tokens=52):
        other = model.forward_features(torch.zeros(1, 3, 40, 40))[0]
    assert torch.cdist(wanted, other).amin(1).max() > 0.01 * largest


def test_by_hand():
    # Halves are tokens 0, 2, 4 and 1, 3; of these, token 1 is token 4's twin, and goes first.
    angle = torch.deg2rad(torch.tensor([0.0, 90, 200, 30, 91]))
    keys = torch.stack([angle.cos(), angle.sin()], 1)[None]
    tokens = VisualTokens(torch.tensor([[[1.0], [2], [3], [4], [8]]]), {"mean_keys": keys})
    chosen = TOME.select(tokens, 4)
    assert chosen.keep.tolist() == [[0, 2, 3, 4]]
    assert chosen.into.tolist() == [[0, 4, 2, 3, 4]]
    assert chosen.apply(tokens.features)[0, :, 0].tolist() == [1, 3, 4, 5]
    assert (chosen.labels % 5).tolist() == [[1, 2, 0, 3]]  # what is left of the second half comes first
    assert chosen.bias is None
    assert PROPORTIONAL.select(tokens, 4).bias.exp().round().tolist() == [[1, 1, 1, 2]]
    # Both of the second half go, and of what is left, 0, 2 and 4, the second into its nearest.
    assert TOME.select(tokens, 2).into.tolist() == [[0, 4, 4, 0, 4]]


def test_of_equal_pairs_the_first_is_merged_into_the_first():
    order = torch.arange(6)[None]
    left, target = matched(torch.ones(1, 6, 3), order, 2)
    assert left.tolist() == [[5, 0, 2, 4]]
    assert target.tolist() == [[0, 0, 2, 0, 4, 5]]


def test_each_layer_that_the_projector_sees_merges_its_share():
    stages = TOME.stages(TINY)
    assert stages == tuple(tower(layer, after="attention") for layer in range(4))
    assert TOME.counts(TINY, 15, 25) == (23, 21, 18, 15)
    assert TOME.counts(TINY, 25, 25) == (25,) * 4
    assert TOME.counts(TINY, 23, 25) == (25, 25, 24, 23)


def test_on_a_classifier_layers_are_not_named():
    _, model = golden_vit("tome_timm_e2e_r8")
    assert len(TOME.stages(vit_spec(model))) == 6
    with (
        pytest.raises(ConfigError, match=r"says itself at which blocks.*leave layer=2 out"),
        tp.prune_vit(model, TOME, layer=2, keep_tokens=9),
    ):
        pass
    with pytest.raises(ConfigError, match="layer is None"), tp.prune_vit(model, "random", keep_tokens=9):
        pass
