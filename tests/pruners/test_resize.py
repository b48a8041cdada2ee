import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from tokenprune import VisualTokens, create_pruner
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError, SelectionError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import SmallerPicture
from tokenprune.embedded.model import load_embedded
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.providers.base import Facts
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.providers.smaller_picture import smaller_picture
from tokenprune.engine.providers.steps import check_steps
from tokenprune.engine.session import Session
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.families.llava import ask, shared_llava


def test_the_tokens_are_those_of_the_tower_on_a_smaller_picture():
    adapter = adapter_for(*load_embedded())
    inputs = Session(adapter).prepare(Scenes(num_samples=2).samples()).inputs
    pruned = Session(adapter).prune_inputs(inputs, create_pruner("resize"), Budget(keep_tokens=24))
    small = interpolate(inputs["pixel_values"], (32, 48), mode="bicubic", antialias=True)
    with torch.no_grad():
        wanted = adapter.model.base_model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True)
    for row in range(2):
        torch.testing.assert_close(
            pruned.inputs["mm_encoder_outputs"]["image"].pooler_output[row],
            wanted.pooler_output[row],
            atol=1e-4,
            rtol=0,
        )
    assert pruned.selection.keep[0, :7].tolist() == [12, 14, 16, 18, 20, 22, 48]


def test_a_smaller_picture_shows_the_same_things_at_the_same_places():
    """Each token is more like the one at the place where it is put than like any other on average."""
    adapter = adapter_for(*load_embedded())
    inputs = Session(adapter).prepare(Scenes(num_samples=6).samples()).inputs
    encoded = Session(adapter).encode(inputs)
    pruned = Session(adapter).prune_inputs(inputs, create_pruner("resize"), Budget(keep_tokens=72), encoded=encoded)
    keep, merged = pruned.selection.keep, pruned.selection.merged
    whole = encoded.features.view(6, 144, -1)
    at = whole.gather(1, keep[..., None].expand_as(merged))
    right = torch.cosine_similarity(merged, at, dim=-1).mean()
    wrong = torch.cosine_similarity(merged, at.flip(1), dim=-1).mean()
    assert right > wrong + 0.1


def test_all_tokens_are_the_picture_as_it_is():
    model, processor = shared_llava("sdpa")
    adapter, inputs = adapter_for(model, processor), ask(processor, 1, 2)
    encoded = Session(adapter).encode(inputs)
    whole, less = (Encoding(adapter, inputs, encoded, quotas=quotas) for quotas in ((25, 25, 25), (25, 6, 0)))
    assert torch.equal(smaller_picture(SmallerPicture(), whole), encoded.features)
    some = smaller_picture(SmallerPicture(), less).view(3, 25, -1)
    assert torch.equal(some[0], encoded.features[:25])
    assert some[1].abs().sum(1).count_nonzero() == 6
    assert some[2].abs().sum(1).count_nonzero() <= 1


def test_numbers_that_are_no_grid_lose_tokens_of_the_next_larger():
    features = torch.arange(144.0)[None, :, None]
    tokens = VisualTokens(features, {"resized_features": features}, grid=(12, 12))
    larger, selection = (create_pruner("resize").select(tokens, k) for k in (48, 47))
    assert set(selection.keep[0].tolist()) < set(larger.keep[0].tolist())
    merged = selection.merged[0, :, 0].long()
    assert torch.equal(larger.keep[0, merged], selection.keep[0])  # each at its own place


def test_rows_of_a_batch_are_what_they_are_alone():
    adapter = adapter_for(*load_embedded())
    samples = [Sample.of(Image.new("RGB", (96, 96), "red"), "where ?", id="a"), *Scenes(num_samples=2).samples()]
    together = Session(adapter).prune_inputs(
        Session(adapter).prepare(samples).inputs, create_pruner("resize"), Budget(keep_tokens=16)
    )
    alone = Session(adapter).prune_inputs(
        Session(adapter).prepare(samples[2:]).inputs, create_pruner("resize"), Budget(keep_tokens=16)
    )
    torch.testing.assert_close(alone.selection.merged[0], together.selection.merged[2], atol=1e-5, rtol=0)


def test_each_budget_has_its_own_picture():
    adapter = adapter_for(*load_embedded())
    inputs = Session(adapter).prepare(Scenes(num_samples=2).samples()).inputs
    encoded = Session(adapter).encode(inputs)
    for k in (48, 24, 48):
        shared, alone = (
            Session(adapter).prune_inputs(inputs, create_pruner("resize"), Budget(keep_tokens=k), encoded=each)
            for each in (encoded, None)
        )
        assert torch.equal(shared.selection.merged, alone.selection.merged)


def test_refusals():
    with pytest.raises(SelectionError, match="resize needs visual tokens in a grid"):
        create_pruner("resize").select(VisualTokens(torch.randn(1, 9, 2)), 4)
    with pytest.raises(SelectionError, match="'resized_features' is needed"):
        create_pruner("resize").select(VisualTokens(torch.randn(1, 9, 2), grid=(3, 3)), 4)
    model, processor = shared_llava("sdpa")
    adapter = adapter_for(model, processor)
    steps = create_pruner("resize").steps(adapter.spec)
    check_steps(steps, Facts(type(adapter)))
    with pytest.raises(ModelError, match="Mistral3Adapter cannot give the signals resized_features"):
        check_steps(steps, Facts(ADAPTERS.get("mistral3")))
