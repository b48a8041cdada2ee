"""Signals of any layer of a vision tower are what that layer computes."""

import dataclasses

import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerAttention, TowerKeys, TowerStates
from tokenprune.engine.loading import session_for
from tokenprune.pruners.base import ScorePruner
from tokenprune.testing.families import families

ONE_PATCH = ("llava", "paligemma")  # a token is a patch


@pytest.mark.parametrize("name", ONE_PATCH)
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_named_layer(name, layer):
    family = families()[name]
    model, processor = family.build("eager")
    inputs, seen = family.ask(processor, 1, 1), {}
    block = model.base_model.vision_tower.encoder.layers[layer]
    first = int(name == "llava")  # CLS
    handles = [
        block.self_attn.k_proj.register_forward_hook(lambda module, args, out: seen.update(keys=out)),
        block.self_attn.register_forward_hook(lambda module, args, out: seen.update(weights=out[1])),
        block.register_forward_hook(lambda module, args, out: seen.update(states=out)),
    ]
    signals = TowerKeys(layer), TowerStates(layer), TowerAttention("patches", layer)
    tokens = session_for(model, processor).visual_tokens(inputs, frozenset(signals))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(tokens.signal(signals[0]), seen["keys"][:, first:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.signal(signals[1]), seen["states"][:, first:], atol=1e-5, rtol=1e-4)
    received = seen["weights"][:, :, first:].mean(2)[:, :, first:]
    torch.testing.assert_close(tokens.signal(signals[2]), received, atol=1e-5, rtol=1e-4)


def test_the_layer_that_the_projector_reads():
    model, processor = families()["llava"].build("sdpa")
    inputs, layers = families()["llava"].ask(processor, 1), len(model.base_model.vision_tower.encoder.layers)
    read = layers + 1 + model.config.vision_feature_layer - 1  # by the number of the encoder layer
    plain = (TowerKeys(), TowerStates(), TowerAttention())
    named = (TowerKeys(read), TowerStates(read - layers), TowerAttention("cls", read))
    tokens = session_for(model, processor).visual_tokens(inputs, frozenset({*plain, *named}))
    for one, other in zip(plain, named, strict=True):
        assert torch.equal(tokens.signal(one), tokens.signal(other))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLayer(ScorePruner):
    """Reads a layer."""

    signal: Signal

    @property
    def requires(self):
        return frozenset({self.signal})

    def score(self, tokens):
        return tokens.signal(self.signal).float().norm(dim=-1)


def test_a_layer_that_the_tower_lacks_is_refused_at_once():
    model, processor = families()["llava"].build("sdpa")
    depth = model.config.vision_config.num_hidden_layers
    message = rf"tower_keys\[layer=9\]: the vision tower has {depth} layers; allowed: -{depth} to"
    pruner = OfLayer(signal=TowerKeys(9))
    with pytest.raises(ModelError, match=message), tp.prune(model, processor, pruner, keep_tokens=5):
        pass
