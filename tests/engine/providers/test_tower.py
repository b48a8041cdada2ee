"""Signals of any layer of a vision tower are what that layer computes."""

import dataclasses

import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import Signal, TowerAttention, TowerKeys, TowerStates
from tokenprune.engine.loading import session_for
from tokenprune.engine.providers.encoding import Encoding
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


# Where layers and their keys are, and in which part of the output the keys are, in towers that merge patches.
MERGED = {
    "internvl": ("vision_tower.encoder.layer", "attention.k_norm", slice(None)),
    "mistral3": ("vision_tower.transformer.layers", "attention.k_proj", slice(None)),
    "qwen2_vl": ("visual.blocks", "attn.qkv", slice(32, 64)),
    "qwen2_5_vl": ("visual.blocks", "attn.qkv", slice(32, 64)),
    "qwen3_vl": ("visual.blocks", "attn.qkv", slice(32, 64)),
}


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_named_layer_of_a_tower_that_merges_patches(name, layer):
    """The layer's own keys and states, as the adapter makes visual tokens of what patches have."""
    place, keys, part = MERGED[name]
    family, seen = families()[name], {}
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, 2)
    block = model.base_model.get_submodule(place)[layer]
    handles = [
        block.get_submodule(keys).register_forward_hook(lambda module, args, out: seen.update(keys=out)),
        block.register_forward_hook(lambda module, args, out: seen.update(states=out)),
    ]
    session, signals = session_for(model, processor), (TowerKeys(layer), TowerStates(layer))
    encoded = session.encode(inputs, frozenset(signals))
    for handle in handles:
        handle.remove()
    view, first = Encoding(session.adapter, inputs, encoded), int(name == "internvl")  # CLS
    for signal, x in zip(signals, (seen["keys"][..., part], seen["states"]), strict=True):
        wanted = session.adapter.per_token("image", x[:, first:] if first else x, inputs)
        torch.testing.assert_close(view.signal(signal), wanted, atol=1e-5, rtol=1e-4)
    if layer == 0:  # the others may be the one that is read
        assert not torch.allclose(view.signal(signals[1]), view.signal(TowerStates()), atol=1e-2)


@pytest.mark.parametrize(("name", "layer"), [("mistral3", 1), ("qwen2_vl", 0), ("qwen2_5_vl", 1), ("qwen3_vl", 0)])
def test_received_attention_of_a_layer_adds_up_to_one_for_each_picture(name, layer):
    """Patches are asked by all of their picture: a visual token has their mean, which is one patch's share."""
    family = families()[name]
    model, processor = family.build("sdpa")
    signal = TowerAttention("patches", layer)
    tokens = session_for(model, processor).visual_tokens(family.ask(processor, 1), frozenset({signal}))
    torch.testing.assert_close(tokens.signal(signal).sum(2) * 4, torch.ones(1, 4), atol=1e-4, rtol=1e-4)


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
