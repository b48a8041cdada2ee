import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tokenprune.adapters.cache_argument import cache_of
from tokenprune.costs.memory import kv_cache_bytes_by_layer


def test_bytes_of_a_real_cache():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.no_grad():
        cache = cache_of(LlamaForCausalLM(config)(torch.zeros(2, 7, dtype=torch.long), use_cache=True))
    assert isinstance(cache, DynamicCache)
    expected = 2 * (2 * 2 * 7 * 8) * 4  # K and V, rows x heads x tokens x width, float32
    assert kv_cache_bytes_by_layer(cache) == [expected] * 3
