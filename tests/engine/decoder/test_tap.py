"""Attention probabilities of single rows, next to any kernel, are those of eager attention."""

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenprune.engine.decoder.tap import PREFIX, attended, tapped
from tokenprune.testing.families.parts import randomise

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
SLIDING = ["full_attention", "sliding_attention", "full_attention"]
MODELS = {
    "llama": {},
    "llama3_rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "layer_types": SLIDING},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "sliding_window": 5, "layer_types": SLIDING},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 5, "layer_types": SLIDING},
}
CASES = [(name, kernel) for name in MODELS for kernel in ("eager", "sdpa") if (name, kernel) != ("gemma2", "sdpa")]


@functools.cache
def build(name, attention):
    options = {"model_type": name, **MODELS[name]}
    config = AutoConfig.for_model(options.pop("model_type"), **SIZES, **options)
    model = randomise(AutoModelForCausalLM.from_config(config, attn_implementation=attention))
    for layer in model.model.layers:
        for norm in ("q_norm", "k_norm"):
            if hasattr(layer.self_attn, norm):
                torch.nn.init.uniform_(getattr(layer.self_attn, norm).weight, -1, 2)
    return model


def twin(name, attention):
    """The same weights under two kernels."""
    eager, other = build(name, "eager"), build(name, attention)
    other.load_state_dict(eager.state_dict())
    return eager, other


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_rows_are_those_of_eager_attention(name, attention, padded):
    eager, model = twin(name, attention)
    ids = torch.randint(1, 50, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0 if padded else 1
    rows = torch.tensor([[10, 6, 4], [10, 9, 3]])
    with torch.no_grad():
        wanted = eager(ids, attention_mask=mask, output_attentions=True).attentions
        for index, layer in enumerate(model.model.layers):
            seen = []
            with tapped(layer.self_attn, seen.append):
                model(ids, attention_mask=mask)
            ours = seen[0].probabilities(rows, mask.bool(), torch.arange(2))
            official = wanted[index].gather(2, rows[:, None, :, None].expand(-1, 4, -1, 11))
            torch.testing.assert_close(ours, official, atol=1e-5, rtol=0)


def hooks(layer):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in layer.modules())


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_before_it_runs(name, attention):
    """Queries and keys of a layer that has not run are those that it uses when it does."""
    model = build(name, attention)
    ids = torch.randint(1, 50, (1, 9), generator=torch.Generator().manual_seed(1))
    layer, foreseen, seen = model.model.layers[1], [], []
    before = hooks(layer)

    def foresee(module, args, kwargs):
        normed = module.input_layernorm(args[0])
        rest = (kwargs["position_embeddings"], kwargs["attention_mask"])
        foreseen.append(attended(module.self_attn, normed, *rest))
        foreseen.append(attended(module.self_attn, normed, *rest, torch.tensor([7])))

    handle = layer.register_forward_pre_hook(foresee, with_kwargs=True)
    with torch.no_grad(), tapped(layer.self_attn, seen.append):
        model(ids)
    handle.remove()

    assert torch.equal(foreseen[0].query, seen[-1].query)
    assert torch.equal(foreseen[0].key, seen[-1].key)
    torch.testing.assert_close(foreseen[1].query[:, :, 7], seen[-1].query[:, :, 7])
    assert torch.equal(foreseen[1].key, seen[-1].key)
    assert not torch.allclose(foreseen[1].query[:, :, 6], seen[-1].query[:, :, 6])  # was not projected
    assert hooks(layer) == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_kernel_computes_what_it_did(attention):
    model = build("llama", attention)
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    config = model.model.layers[1].self_attn.config
    with torch.no_grad():
        plain = model(ids).logits
        with (
            tapped(model.model.layers[1].self_attn, lambda what: None),
            tapped(model.model.layers[1].self_attn, lambda what: None),
        ):
            assert model.model.layers[1].self_attn.config._attn_implementation == PREFIX + attention
            assert torch.equal(model(ids).logits, plain)
    assert model.model.layers[1].self_attn.config is config
    assert config._attn_implementation == attention


def test_listeners_leave_when_they_fail():
    model = build("llama", "sdpa")
    config = model.model.layers[0].self_attn.config
    with pytest.raises(ZeroDivisionError), tapped(model.model.layers[0].self_attn, lambda what: 1 / 0):
        model(torch.ones(1, 3, dtype=torch.long))
    assert model.model.layers[0].self_attn.config is config


def test_kernels_that_read_their_name_from_the_config_find_it():
    """Flash attention does."""
    from transformers import AttentionInterface

    named = []

    def kernel(module, query, key, value, mask, **options):
        named.append(module.config._attn_implementation)
        return torch.zeros(query.shape).transpose(1, 2), None

    AttentionInterface.register("tokenprune_test_kernel", kernel)
    model = build("llama", "eager")
    attention = model.model.layers[0].self_attn
    config = attention.config
    try:
        import copy

        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = "tokenprune_test_kernel"
        with torch.no_grad(), tapped(attention, lambda what: None):
            model(torch.ones(1, 3, dtype=torch.long))
    finally:
        attention.config = config
    assert named == ["tokenprune_test_kernel"]
