"""LLaVA whose vision tower has the weights of a golden file, and is given its hidden states instead of a picture."""

import math

import torch
from golden_data import load
from torch import nn
from transformers import CLIPVisionConfig

import tokenprune as tp
from tokenprune.engine.loading import session_for
from tokenprune.testing.families.llava import PATCH_SIZE, ask, tiny_llava, tiny_processor


def golden_tower(name, attention="sdpa"):
    """The golden file, and a session with inputs whose visual tokens are what comes out of the file's tower."""
    case = load(name)
    weights = {key.removeprefix("sd."): value for key, value in case.items() if key.startswith("sd.")}
    entering = case["inputs_embeds"]
    wide, hidden = weights["encoder.layers.0.mlp.fc1.weight"].shape
    side = math.isqrt(entering.shape[1] - 1) * PATCH_SIZE
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=1 + max(int(key.split(".")[2]) for key in weights),
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH_SIZE,
    )
    model, processor = tiny_llava(attention, vision), tiny_processor()
    model.config.image_seq_length = entering.shape[1] - 1
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    tower = model.base_model.vision_tower
    missing, unexpected = tower.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not any("encoder" in key for key in missing)
    tower.pre_layrnorm.register_forward_hook(lambda *_: entering)
    width = model.config.text_config.hidden_size
    model.base_model.multi_modal_projector = nn.ConstantPad1d((0, width - hidden), 0.0)
    return case, session_for(model, processor), ask(processor, len(entering))


def pruned_by(session, inputs, pruner, keep):
    """What a pruner leaves of the inputs, and the visual tokens (I, K, V) that come out of the tower."""
    pruned = session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=keep))
    features = pruned.inputs["mm_encoder_outputs"]["image"].pooler_output
    stacked = features if isinstance(features, torch.Tensor) else torch.stack(list(features))
    return pruned, stacked[..., : session.adapter.model.config.vision_config.hidden_size]
