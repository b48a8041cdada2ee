"""The paired CLIP of the embedded MLLM as open_clip loads it: ``python -m tokenprune.embedded.open_clip FOLDER``.

The folder holds the text tower and the head of the vision tower, whose layers no conditioning reads. The weights are
those of ``weights/clip``; ``weights/open_clip`` was written by this command.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenprune.embedded.model import WEIGHTS

PLACES = {  # open_clip's name of a module to Hugging Face's
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def convert(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights of a Hugging Face CLIP without vision layers, by open_clip's names.

    Args:
        state: of a ``CLIPModel``.
        layers: of its text tower.
    """
    places, blocks = dict(PLACES), [f"text_model.encoder.layers.{index}" for index in range(layers)]
    new = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    for index, old in enumerate(blocks):
        block = f"transformer.resblocks.{index}"
        places |= {f"{block}.{ours}": f"{old}.{theirs}" for ours, theirs in BLOCK.items()}
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            new[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    for ours, theirs in places.items():
        new |= {f"{ours}.{kind}": state[key] for kind in ("weight", "bias") if (key := f"{theirs}.{kind}") in state}
    return {name: weight.contiguous() for name, weight in new.items()}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``open_clip_config.json`` says, from the ``config.json`` of a ``CLIPModel``."""
    text, vision = config["text_config"], config["vision_config"]

    def shared(tower: Mapping[str, Any]) -> dict[str, Any]:
        return {"width": tower["hidden_size"], "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"]}

    own = {"layers": text["num_hidden_layers"], "heads": text["num_attention_heads"], "vocab_size": text["vocab_size"]}
    ends = {"pool_type": "eos", "eos_id": text["eos_token_id"], "pad_id": text["pad_token_id"]}
    sizes = {"image_size": vision["image_size"], "patch_size": vision["patch_size"], "layers": 0}
    head = {"head_width": vision["hidden_size"] // vision["num_attention_heads"]}
    tokens = {"context_length": text["max_position_embeddings"], "hf_tokenizer_name": "beside"}
    model = {
        "embed_dim": config["projection_dim"],
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": {**sizes, **head, **shared(vision)},
        "text_cfg": {**tokens, **own, **shared(text), **ends},
    }
    return {"model_cfg": model, "preprocess_cfg": {}}


def write(folder: Path) -> None:
    """Write config, weights and tokenizer of the embedded CLIP."""
    clip = WEIGHTS / "clip"
    config = json.loads((clip / "config.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings(config), indent=1) + "\n")
    weights = convert(load_file(clip / "model.safetensors"), config["text_config"]["num_hidden_layers"])
    save_file(weights, folder / "open_clip_model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip / name, folder / name)


def main() -> None:
    """Entry point of ``python -m tokenprune.embedded.open_clip``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
