import pytest
import timm
import torch
from tiny_timm import SIZES, VITS, images, tiny_vit
from torch.utils.flop_counter import FlopCounterMode

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.towers.timm_sizes import vit_spec


@pytest.mark.parametrize("name", VITS)
def test_flops_are_those_of_the_counter(name):
    model = tiny_vit(name, fused=False)
    spec, prefix = vit_spec(model), model.num_prefix_tokens
    expected = [spec.llm.layer_flops(*[prefix + patches] * 3) for patches in (36, 36, 18, 9)]
    pixels = images(1)
    with (
        tp.prune_vit(model, "uniform", layer=(2, 3), flops=sum(expected)) as trace,
        FlopCounterMode(display=False) as flops,
    ):
        model(pixels)
    assert trace.keep.shape == (1, 9)
    counts = flops.get_flop_counts()
    assert [sum(counts[f"{type(model).__name__}.blocks.{at}"].values()) for at in range(4)] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224"),
            "SwinTransformer cannot be pruned between its blocks",
        ),
        (lambda: timm.create_model("beit_base_patch16_224", depth=1), "Beit cannot be pruned"),
        (lambda: torch.nn.Identity(), "Identity cannot be pruned .* give a VisionTransformer or Eva of timm"),
        (lambda: vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock), "type ParallelScalingBlock with"),
        (lambda: vit(attn_layer="diff"), "blocks of type Block with DiffAttention are not known to work"),
        (lambda: gated(vit()), "gated attention"),
        (lambda: uneven(vit()), "differ in their sizes"),
    ],
)
def test_what_is_not_known_to_work_is_refused_by_name(make, message):
    model = make()
    with pytest.raises(ModelError, match=message):
        vit_spec(model)


def vit(**changes):
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **SIZES, **changes)


def gated(model):
    model.blocks[1].attn.gate = torch.nn.Linear(32, 32)
    return model


def uneven(model):
    model.blocks[1] = timm.models.vision_transformer.Block(32, 2)
    return model
