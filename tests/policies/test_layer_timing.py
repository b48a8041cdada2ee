"""Timings of a layer: what is timed is what the layer does, and the model that they are fitted with."""

from types import SimpleNamespace

import pytest
import torch

from tokenprune.core.errors import ModelError
from tokenprune.engine.loading import adapter_for
from tokenprune.policies import layer_timing
from tokenprune.policies.layer_timing import time_layers
from tokenprune.testing.families.llava import shared_llava, tiny_llava, tiny_processor

TEXT, TOTAL = 12, 25


@pytest.fixture
def clock(monkeypatch):
    """A clock that work sets forward by a known law, around which turns vary; the first two take much longer."""
    clock = SimpleNamespace(seconds=0.0, seen=[])
    turns = [50, 30, 0.7, 1.2, 0.8, 1.1, 0.9, 1]

    def spend(key, milliseconds):
        clock.seconds += 1e-3 * turns[clock.seen.count(key)] * milliseconds
        clock.seen.append(key)

    def attention(layer, head, hidden, sources, receivers):
        spend((sources, receivers), 0.5 + 0.02 * sources + 0.04 * receivers + 0.003 * sources * receivers)

    def mlp(layer, hidden, tokens):
        spend((tokens,), 0.25 + 0.1 * tokens)

    monkeypatch.setattr(layer_timing, "_attention", attention)
    monkeypatch.setattr(layer_timing, "_mlp", mlp)
    monkeypatch.setattr("tokenprune.costs.latency.now", lambda device: clock.seconds)
    return clock


def test_the_law_is_found(clock):
    """In milliseconds, from the middle one of all turns but the first."""
    model = time_layers(adapter_for(*shared_llava("sdpa")), TEXT)
    assert model.attention == pytest.approx((0.5, 0.02, 0.04, 0.003))
    assert model.mlp == pytest.approx((0.25, 0.1))
    assert {len(key) for key in clock.seen} == {1, 2}
    sizes = {key[0] for key in clock.seen}
    assert min(sizes) == TEXT
    assert max(sizes) == TEXT + TOTAL
    assert any(sources > receivers for sources, receivers in (key for key in clock.seen if len(key) == 2))


@torch.no_grad()
def test_what_is_timed_is_what_a_layer_does():
    """With a rotation by nothing, which is all that is left out."""
    decoder, hidden = shared_llava("sdpa")[0].get_decoder(), torch.randn(1, 30, 64)
    layer = decoder.layers[2]
    still = torch.ones(1, 20, 16), torch.zeros(1, 20, 16)
    normed = layer.input_layernorm(hidden[:, :20])
    whole = layer.self_attn(normed, attention_mask=None, position_embeddings=still)[0]
    torch.testing.assert_close(layer_timing._attention(layer, 16, hidden, 20, 20), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer_timing._mlp(layer, hidden, 20), layer.mlp(normed))
    assert layer_timing._attention(layer, 16, hidden, 20, 7).shape == (1, 7, 64)


def test_a_real_clock():
    model = time_layers(adapter_for(*shared_llava("sdpa")), TEXT)
    assert model.mlp_milliseconds(TEXT + TOTAL) > 0
    assert model.attention_milliseconds(TEXT + TOTAL, TEXT) > 0


def test_attention_of_another_build_is_refused():
    model = tiny_llava()
    adapter = adapter_for(model, tiny_processor())
    del model.get_decoder().layers[2].self_attn.k_proj
    with pytest.raises(ModelError, match=r"LlamaAttention has no k_proj, so that milliseconds cannot be fitted"):
        time_layers(adapter, TEXT)
