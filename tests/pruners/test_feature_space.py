import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.signals import Encoder

SPACE = "timm:vit_tiny_patch16_224"
NAMES = [("divprune", {}), ("cdpruner", {"conditioning": "none"})]


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_similarity_is_measured_in_the_space_that_is_named(name, options):
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 36, 8, generator=generator), torch.randn(2, 36, 5, generator=generator)
    plain = tp.create_pruner(name, **options)
    elsewhere = tp.create_pruner(name, features=SPACE, **options)
    assert elsewhere.requires == plain.requires | {Encoder(SPACE)}
    assert Encoder(SPACE) not in plain.requires
    tokens = tp.VisualTokens(own, {Encoder(SPACE): other})
    ours = elsewhere.select(tokens, 9).order
    assert torch.equal(ours, plain.select(tp.VisualTokens(other), 9).order)
    assert torch.equal(plain.select(tokens, 9).order, plain.select(tp.VisualTokens(own), 9).order)
    assert not torch.equal(ours, plain.select(tokens, 9).order)
    with pytest.raises(SelectionError, match="'encoder_features' is needed"):
        elsewhere.select(tp.VisualTokens(own), 9)


@pytest.mark.parametrize("name", ["divprune", "cdpruner"])
@pytest.mark.parametrize("value", ["dinov2", "timm:", "", "open_clip:ViT-B-32"])
def test_a_space_that_is_none(name, value):
    with pytest.raises(ConfigError, match="allowed: own, or timm:<model>"):
        tp.create_pruner(name, features=value)
