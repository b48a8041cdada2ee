import itertools

import pytest
import torch
from tiny_timm import VITS, WITH_CLS, ByCLS, ByKeys, by_hand, images, masked, tiny_vit

import tokenprune as tp
from tokenprune.core.errors import BudgetError, ModelError, TokenPruneError
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.towers.pictures import content_id
from tokenprune.towers.timm_attention import attention_signals

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "eager"])
@pytest.mark.parametrize("name", VITS)
def test_dropping_is_calling_the_blocks_on_what_is_left_and_is_masking(name, fused):
    model, pixels = tiny_vit(name, fused=fused), images()
    plain = model(pixels)
    pruners = ["divprune", ByKeys(), *([ByCLS()] if name in WITH_CLS else [])]
    kept = []
    for pruner in pruners:
        with tp.prune_vit(model, pruner, layer=(1, 3), keep_tokens=9) as trace:
            logits = model(pixels)
            ends = model.forward_features(pixels)
        assert {layer: keep.shape for layer, keep in trace.stages.items()} == {1: (3, 18), 3: (3, 9)}
        close(logits, by_hand(model, pixels, trace.stages))
        close(ends, masked(model, pixels, trace.stages))
        assert not torch.allclose(logits, plain, atol=1e-3)
        kept.append(trace.keep)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(kept, 2))


@pytest.mark.parametrize("name", ["vit", "dinov3", "mixed rope"])
@pytest.mark.parametrize("pruner", ["divprune", "random", "uniform", ByKeys()], ids=str)
def test_keeping_all_is_the_model_bit_for_bit(name, pruner):
    model, pixels = tiny_vit(name), images()
    plain = model(pixels)
    with tp.prune_vit(model, pruner, layer=2, keep_ratio=1.0) as trace:
        assert torch.equal(model(pixels), plain)
    assert torch.equal(trace.keep, torch.arange(36).expand(3, -1))


@pytest.mark.parametrize("pruner", ["cdpruner", "random", "uniform", ByKeys(), ByCLS()], ids=str)
def test_an_image_alone_is_the_image_in_a_batch(pruner):
    model, pixels = tiny_vit("dinov3"), images()
    options = {"conditioning": "none"} if pruner == "cdpruner" else {}
    with tp.prune_vit(model, pruner, layer=[1, 2], keep_ratio=0.25, **options) as trace:
        together = model(pixels)
        alone = torch.cat([model(image[None]) for image in pixels])
    close(alone, together)
    batch, *single = trace.calls
    for layer, keep in batch.items():
        assert torch.equal(keep, torch.cat([call[layer] for call in single]))
    if pruner != "uniform":
        assert len({tuple(row) for row in batch[2].tolist()}) == 3


def test_a_random_draw_at_one_stage_tells_nothing_about_the_next():
    model, pixels = tiny_vit(), images(1)
    with tp.prune_vit(model, "random", layer=(1, 2), keep_tokens=9) as trace:
        model(pixels)
    first, second = trace.stages[1][0], trace.stages[2][0]
    again = tp.VisualTokens(torch.zeros(1, 18, 1), row_ids=content_id(pixels[0])[None])
    same_draw = tp.create_pruner("random").select(again, 9).keep[0]
    assert not torch.equal(second, first[same_draw])
    assert set(second.tolist()) < set(first.tolist())


def test_signals_and_grid_are_of_what_a_stage_gets():
    seen = []

    class Spy(ByKeys):
        def score(self, tokens):
            seen.append(tokens)
            return super().score(tokens)

    model, pixels = tiny_vit("registers"), images()
    hidden = {}
    handles = [
        model.blocks[at].register_forward_pre_hook(lambda _, x, at=at: hidden.update({at: x[0]})) for at in (1, 3)
    ]
    with tp.prune_vit(model, Spy(), layer=(1, 3), keep_tokens=9):
        model(pixels)
    for handle in handles:
        handle.remove()
    assert [tokens.grid for tokens in seen] == [(6, 6), None]
    assert [tuple(tokens.signals["keys"].shape) for tokens in seen] == [(3, 36, 32), (3, 18, 32)]
    for layer, tokens in zip((1, 3), seen, strict=True):
        assert torch.equal(tokens.features, hidden[layer][:, 5:])
        assert tokens.content_ids().unique().shape == (3,)


@pytest.mark.parametrize("name", WITH_CLS)
def test_a_named_block_gives_what_it_computed_of_the_patches_that_are_left(name):
    """Keys as the block's attention has them, CLS attention as a part of its softmax, and states behind the block."""
    named, seen = (TowerKeys(0), TowerAttention("cls", -4), TowerStates(0)), []

    class Spy(ByKeys):
        requires = frozenset({TowerKeys(), TowerAttention("cls"), *named})

        def score(self, tokens):
            seen.append(tokens)
            return super().score(tokens)

    model, pixels, states = tiny_vit(name), images(), []
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: states.append(output))
    prefix, given = model.num_prefix_tokens, []
    asked = model.blocks[0].attn.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args[0], kwargs.get("rope"))), with_kwargs=True
    )
    with tp.prune_vit(model, Spy(), layer=(1, 2), keep_tokens=9) as trace:
        model(pixels)
    handle.remove()
    asked.remove()
    found = attention_signals(model.blocks[0].attn, *given[0], prefix, frozenset({TowerKeys(), TowerAttention("cls")}))
    first, second = seen
    rows, left = torch.arange(3)[:, None], trace.stages[1]
    plain = {TowerKeys(0): TowerKeys(), TowerAttention("cls", -4): None, TowerStates(0): None}
    for signal, own in plain.items():
        whole, part = first.signal(signal), second.signal(signal)
        axis = part.shape.index(18)
        close(part.movedim(axis, 1), whole.movedim(axis, 1)[rows, left])
        if own is not None:
            assert torch.equal(whole, first.signal(own))
            assert not torch.equal(part, second.signal(own))
    assert torch.equal(first.signal(TowerStates(0)), states[0][:, prefix:])
    for signal, wanted in found.items():  # of what the attention module itself was given
        assert torch.equal(first.signal(signal), wanted)
    assert torch.equal(first.signal(TowerAttention("cls", -4)), first.signal(TowerAttention("cls")))


def test_merged_features_replace_those_of_the_kept():
    class Zero(ByKeys):
        def _select(self, tokens, k):
            selection = super()._select(tokens, k)
            merged = torch.zeros(len(selection.keep), k + self.extra, tokens.features.shape[2])
            return type(selection)(selection.keep, tokens.num_tokens, merged=merged)

        extra = 0

    model, pixels = tiny_vit(), images()
    with tp.prune_vit(model, Zero(), layer=3, keep_tokens=5):
        logits = model(pixels)
    hidden = pixels
    hidden = model.norm_pre(model._pos_embed(model.patch_embed(hidden)))
    for block in model.blocks[:3]:
        hidden = block(hidden)
    last = model.blocks[3](torch.cat([hidden[:, :1], torch.zeros(3, 5, 32)], 1))
    close(logits, model.forward_head(model.norm(last)))
    Zero.extra = 1
    with (
        tp.prune_vit(model, Zero(), layer=3, keep_tokens=5),
        pytest.raises(ModelError, match="appended inside the LLM"),
    ):
        model(pixels)


def test_an_image_of_another_size():
    model = tiny_vit("registers", dynamic_img_size=True)
    with tp.prune_vit(model, "divprune", layer=2, keep_ratio=0.5) as trace:
        model(images(2, size=40))
        assert trace.keep.shape == (2, 50)
        model(images(2, size=24))
        assert trace.keep.shape == (2, 18)
    with tp.prune_vit(model, "divprune", layer=2, keep_tokens=90), pytest.raises(BudgetError, match="exceeds the 36"):
        model(images(2, size=24))


def test_intermediates_are_of_the_patches_that_are_left():
    model, pixels = tiny_vit("dinov3"), images()
    with tp.prune_vit(model, "divprune", layer=2, keep_tokens=9) as trace:
        _, inside = model.forward_intermediates(pixels, output_fmt="NLC")
        early = model.forward_intermediates(pixels, [1], output_fmt="NLC", stop_early=True, intermediates_only=True)
        logits = model(pixels)
    assert [x.shape[1] for x in (*inside, *early)] == [36, 36, 9, 9, 36]
    assert len(trace.calls) == 2
    close(logits, by_hand(model, pixels, trace.stages))


def test_gradients_reach_what_is_left_alone():
    model = tiny_vit()
    with torch.enable_grad(), tp.prune_vit(model, ByCLS(), layer=1, keep_tokens=6) as trace:
        hidden = []
        handle = model.blocks[0].register_forward_hook(lambda *args: args[2].retain_grad() or hidden.append(args[2]))
        model(images()).sum().backward()
        handle.remove()
    kept = torch.zeros(3, 36, dtype=torch.bool).scatter(1, trace.keep, True)
    assert torch.equal(hidden[0].grad[:, 1:].abs().sum(-1) > 0, kept)


def test_what_a_forward_cannot_do_while_patches_leave():
    model, pixels = tiny_vit(), images()
    with tp.prune_vit(model, "divprune", layer=2, keep_tokens=9) as trace:
        with pytest.raises(TokenPruneError, match="the model was not called"):
            _ = trace.keep
        with pytest.raises(ModelError, match="attn_mask and is_causal are of all patches"):
            model(pixels, attn_mask=torch.ones(1, 1, 37, 37, dtype=torch.bool))
        model.set_grad_checkpointing(True)
        with torch.enable_grad(), pytest.raises(ModelError, match="runs blocks twice"):
            model(pixels)
        model.set_grad_checkpointing(False)
        assert model(pixels).shape == (3, 10)
    model = tiny_vit(patch_drop_rate=0.5).train()
    with tp.prune_vit(model, "divprune", layer=2, keep_tokens=9), pytest.raises(ModelError, match="patch dropout off"):
        model(pixels)
