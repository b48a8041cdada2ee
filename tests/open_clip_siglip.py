"""The tiny SigLIP as a folder of open_clip's."""

import json

import torch
from safetensors.torch import save_file

from tokenprune.testing.families.gemma3 import PATCH, PIXELS
from tokenprune.testing.towers import CONTEXT, LAYERS, WIDTH, tiny_siglip


def save_open_clip(folder):
    """The same weights as a folder of open_clip's, whose vision tower is timm's."""
    model, tokenizer = tiny_siglip()
    sizes = {"img_size": PIXELS, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 4}
    (folder / "trunk").mkdir()
    trunk = {
        "architecture": "vit_base_patch16_siglip_224",
        "model_args": {**sizes, "mlp_ratio": 2},
        "pretrained_cfg": {},
    }
    (folder / "trunk/config.json").write_text(json.dumps(trunk))
    timm = {"timm_model_name": f"local-dir:{folder}/trunk", "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": WIDTH, "heads": 4, "layers": LAYERS}
    text |= {"hf_tokenizer_name": "here", "mlp_ratio": 2, "no_causal_mask": True, "proj_bias": True}
    config = {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": PIXELS, "timm_model_pretrained": False, **timm},
        "text_cfg": {**text, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    tokenizer.save_pretrained(folder)
    save_file(translated(model.state_dict()), folder / "open_clip_model.safetensors")
    return str(folder)


def translated(state):
    """Hugging Face's names of weights to open_clip's."""
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    out = {
        "visual.trunk.pos_embed": state[f"{vision}.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": state[f"{head}.probe"],
        "text.positional_embedding": state[f"{text}.embeddings.position_embedding.weight"],
        "text.token_embedding.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "logit_scale": state["logit_scale"][0],
        "logit_bias": state["logit_bias"][0],
    }
    pool = "visual.trunk.attn_pool"
    same = {
        "visual.trunk.patch_embed.proj": f"{vision}.embeddings.patch_embedding",
        "visual.trunk.norm": f"{vision}.post_layernorm",
        f"{pool}.proj": f"{head}.attention.out_proj",
        f"{pool}.norm": f"{head}.layernorm",
        "text.ln_final": f"{text}.final_layer_norm",
        "text.text_projection": f"{text}.head",
    }
    same |= {f"{pool}.mlp.{part}": f"{head}.mlp.{part}" for part in ("fc1", "fc2")}
    joint = {"visual.trunk.blocks.{}.attn.qkv.": "vision_model", "text.transformer.resblocks.{}.attn.in_proj_": text}
    for layer in range(LAYERS):
        new, old = f"visual.trunk.blocks.{layer}", f"{vision}.encoder.layers.{layer}"
        same |= {f"{new}.norm{n}": f"{old}.layer_norm{n}" for n in (1, 2)}
        same |= {f"{new}.mlp.fc{n}": f"{old}.mlp.fc{n}" for n in (1, 2)}
        same[f"{new}.attn.proj"] = f"{old}.self_attn.out_proj"
        new, old = f"text.transformer.resblocks.{layer}", f"{text}.encoder.layers.{layer}"
        same |= {f"{new}.ln_{n}": f"{old}.layer_norm{n}" for n in (1, 2)}
        same |= {f"{new}.mlp.c_fc": f"{old}.mlp.fc1", f"{new}.mlp.c_proj": f"{old}.mlp.fc2"}
        same[f"{new}.attn.out_proj"] = f"{old}.self_attn.out_proj"
    for kind in ("weight", "bias"):
        packed = state[f"{head}.attention.in_proj_{kind}"].split(WIDTH)
        out |= {f"{pool}.q.{kind}": packed[0], f"{pool}.kv.{kind}": torch.cat(packed[1:])}
        for layer in range(LAYERS):
            for new, tower in joint.items():
                old = f"{tower}.encoder.layers.{layer}.self_attn"
                out[new.format(layer) + kind] = torch.cat([state[f"{old}.{part}_proj.{kind}"] for part in "qkv"])
        out |= {f"{new}.{kind}": state[f"{old}.{kind}"] for new, old in same.items()}
    return {name: weight.clone().contiguous() for name, weight in out.items()}
