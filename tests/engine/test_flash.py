"""Flash attention, by whatever name transformers calls it, here a plain function that takes what such kernels take."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import tokenprune as tp
from tokenprune.testing.families.llava import ask, tiny_llava, tiny_processor

NAMES = [
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "kernels-community/flash-attn2",
    "kernels-community/vllm-flash-attn3",
]


def flash(module, query, key, value, mask, scaling, **_):
    """Causal over the last of the keys, without those that a (B, columns) mask calls padding."""
    queries, columns = query.shape[2], key.shape[2]
    allowed = torch.ones(queries, columns, dtype=torch.bool).tril(columns - queries)
    if mask is not None:
        own = torch.eye(columns, dtype=torch.bool)[columns - queries :]  # padding sees itself: it must see something
        allowed = (allowed & mask.bool()[:, None] | own)[:, None]
    out = scaled_dot_product_attention(query, key, value, allowed, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


@pytest.fixture(scope="module")
def model():
    return tiny_llava("sdpa")


def answers(model, pruner, images, **options):
    processor = tiny_processor()
    with torch.no_grad(), tp.prune(model, processor, pruner, **options) as trace:
        out = model.generate(
            **ask(processor, *images), max_new_tokens=4, output_logits=True, return_dict_in_generate=True
        )
    return out.sequences, torch.stack(out.logits), trace.stages[-1].keep


@pytest.mark.parametrize("images", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pruner", ["fastv", "pyramiddrop", "sparsevlm", "divprune"])
def test_is_as_sdpa(model, monkeypatch, pruner, name, images):
    wanted = answers(model, pruner, images, keep_tokens=6)
    for registry, function in ((AttentionInterface, flash), (AttentionMaskInterface, flash_attention_mask)):
        monkeypatch.setitem(registry._global_mapping, name, function)
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation_internal", name)
    found = answers(model, pruner, images, keep_tokens=6)
    assert torch.equal(found[0], wanted[0])
    assert found[2] == wanted[2]
    torch.testing.assert_close(found[1], wanted[1], atol=1e-4, rtol=0)
