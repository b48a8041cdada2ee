import pytest
import torch
from tiny_timm import VITS, WITH_CLS, images, tiny_vit

from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.towers.timm_attention import attention_signals

BOTH = frozenset({TowerKeys(), TowerAttention("cls")})


def given(model, block):
    """What the attention of a block was given, and its probabilities, which the kernel without fusion has."""
    seen, attention = {}, model.blocks[block].attn
    attention.register_forward_pre_hook(lambda _, args, kwargs: seen.update(x=args[0], **kwargs), with_kwargs=True)
    attention.attn_drop.register_forward_hook(lambda _, args, output: seen.update(weights=args[0]))
    with torch.no_grad():
        model(images())
    return attention, seen["x"], seen.get("rope"), seen["weights"]


@pytest.mark.parametrize("name", WITH_CLS)
@pytest.mark.parametrize("block", [0, 2])
def test_the_cls_row_is_that_of_the_eager_kernel(name, block):
    model = tiny_vit(name, fused=False)
    prefix = model.num_prefix_tokens
    attention, x, rope, weights = given(model, block)
    ours = attention_signals(attention, x, rope, prefix, BOTH)[TowerAttention("cls")]
    assert ours.shape == (3, 4, 36)
    torch.testing.assert_close(ours, weights[:, :, 0, prefix:], atol=1e-5, rtol=1e-4)
    assert ours.std() > 1e-3


@pytest.mark.parametrize("name", VITS)
def test_the_keys_are_those_that_the_kernel_gets(name, monkeypatch):
    model, handed = tiny_vit(name), []
    attend = torch.nn.functional.scaled_dot_product_attention
    kernel = lambda q, k, v, **options: handed.append(k) or attend(q, k, v, **options)  # noqa: E731
    seen = {}
    attention = model.blocks[1].attn
    attention.register_forward_pre_hook(lambda _, args, kwargs: seen.update(x=args[0], **kwargs), with_kwargs=True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    with torch.no_grad():
        model(images())
    prefix = model.num_prefix_tokens
    found = attention_signals(attention, seen["x"], seen.get("rope"), prefix, frozenset({TowerKeys()}))
    assert set(found) == {TowerKeys()}
    ours = found[TowerKeys()].unflatten(2, (-1, 8)).transpose(1, 2)
    theirs = handed[1][:, :: 4 // ours.shape[1], prefix:]  # a key that several heads share is handed over for each
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit", "dinov3"])
def test_a_projection_that_is_no_plain_linear_is_called(name):
    model = tiny_vit(name, fused=False)
    attention, x, rope, _ = given(model, 1)
    plain = attention_signals(attention, x, rope, model.num_prefix_tokens, BOTH)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    attention.qkv.__class__ = Doubled
    doubled = attention_signals(attention, x, rope, model.num_prefix_tokens, BOTH)
    torch.testing.assert_close(doubled[TowerKeys()], 2 * plain[TowerKeys()])
