"""Tiny text towers of random weights that pair with the tiny families' vision towers: CLIP's and SigLIP's."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tokenprune.testing.families.gemma3 import PATCH, PIXELS
from tokenprune.testing.families.llava import shared_llava, tiny_vision_config
from tokenprune.testing.families.parts import randomise

CONTEXT, WIDTH, LAYERS = 12, 32, 2


def tiny_clip(eos_token_id: int | None = None) -> tuple[Any, Any]:
    """The CLIPModel whose vision tower the tiny LLaVA has, and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    from tokenprune.embedded.tokenizer import VOCABULARY, build_tokenizer

    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        projection_dim=24,
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=eos_token_id or VOCABULARY["</s>"],
        pad_token_id=VOCABULARY["<pad>"],
    )
    vision = tiny_vision_config()
    torch.manual_seed(1)
    clip = randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), seed=1)
    clip.vision_model.load_state_dict(shared_llava("sdpa")[0].base_model.vision_tower.state_dict())
    return clip, build_tokenizer(append_eos=True)


def tiny_tokenizer() -> Any:
    """The end of a text is also its padding, as in SigLIP's; there is no beginning."""
    from tokenizers.processors import TemplateProcessing

    from tokenprune.embedded.tokenizer import VOCABULARY, build_tokenizer

    tokenizer = build_tokenizer(append_eos=True)
    ends = [("</s>", VOCABULARY["</s>"])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=ends)
    tokenizer.pad_token = "</s>"
    return tokenizer


def tiny_siglip(kind: str = "siglip") -> tuple[Any, Any]:
    """(model, tokenizer); ``siglip2``: the kind for images of any size."""
    from transformers import AutoConfig, AutoModel

    from tokenprune.embedded.tokenizer import VOCABULARY

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    vision = {"num_hidden_layers": LAYERS, "image_size": PIXELS, "patch_size": PATCH}
    vision |= {"num_patches": (PIXELS // PATCH) ** 2} if kind == "siglip2" else {}
    text: dict[str, Any] = {"num_hidden_layers": LAYERS, "max_position_embeddings": CONTEXT, "projection_size": WIDTH}
    text |= {"vocab_size": len(VOCABULARY), "bos_token_id": None, "eos_token_id": VOCABULARY["</s>"]}
    config = AutoConfig.for_model(kind, vision_config={**sizes, **vision}, text_config={**sizes, **text})
    torch.manual_seed(2)
    model = uneven(AutoModel.from_config(config))
    return model, tiny_tokenizer()


def uneven(model: Any) -> Any:
    """Random weights, those of norms and biases among them, which would begin as ones and zeros."""
    randomise(model, seed=2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.1 * torch.randn(weight.shape)
    return model


@functools.cache
def shared_tower() -> Any:
    """Its paired tower: leave it as it is."""
    from tokenprune.towers.text.siglip import SiglipTower

    return SiglipTower(*tiny_siglip())


def save_siglip(folder: Path, kind: str = "siglip") -> str:
    """The tiny SigLIP as a folder of Hugging Face's."""
    for part in tiny_siglip(kind):
        part.save_pretrained(folder)
    return str(folder)


@functools.cache
def saved_towers() -> dict[str, str]:
    """Folders of the text towers, by the ``tower`` of the families that they pair with."""
    root = Path(tempfile.mkdtemp(prefix="tokenprune-towers-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for part in tiny_clip():
        part.save_pretrained(root / "clip")
    return {"clip": str(root / "clip"), "siglip": save_siglip(root / "siglip")}
