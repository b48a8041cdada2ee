"""Tiny MLLMs in whose vision tower patches can leave, and a slow reference that masks what left."""

from dataclasses import replace

import torch
from transformers import SiglipVisionConfig

import tokenprune as tp
from tokenprune.core.stages import Stage
from tokenprune.pruners.base import Pruner
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import Llava, tiny_llava, tiny_processor, tiny_vision_config
from tokenprune.testing.pruners import Within


class WithSiglip(Llava):
    """LLaVA with a SigLIP tower, which has no CLS token."""

    tower = "siglip"

    def make(self, attention):
        sizes = tiny_vision_config()
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
        )
        model, processor = tiny_llava(attention, vision, vision_feature_select_strategy="full"), tiny_processor()
        processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
        return model, processor


MLLMS = {"llava": families()["llava"], "llava siglip": WithSiglip(), "paligemma": families()["paligemma"]}
PREFIX = {"llava": 1, "llava siglip": 0, "paligemma": 0}


def read(name, model, hidden):
    """Visual tokens (I, N, D) of what the last layer gives that is read, (I, L, V)."""
    tower = model.base_model.vision_tower
    hidden = tower.post_layernorm(hidden) if name == "paligemma" else hidden
    return model.base_model.multi_modal_projector(hidden[:, PREFIX[name] :])


def layers_read(name, model):
    """How many layers of the tower there are before the projector."""
    return (
        model.config.vision_config.num_hidden_layers if name == "paligemma" else model.config.vision_feature_layer % 5
    )


@torch.no_grad()
def masked_tower(name, model, pixels, keeps):
    """(I, N, D) visual tokens, if patches that are not in ``keeps`` (layer: (I, K)) are hidden as keys, not removed."""
    tower, prefix = model.base_model.vision_tower, PREFIX[name]
    hidden = tower.embeddings(pixels)
    hidden = tower.pre_layrnorm(hidden) if name == "llava" else hidden
    seen = torch.ones(hidden.shape[:2], dtype=torch.bool)
    for index, layer in enumerate(tower.encoder.layers[: layers_read(name, model)]):
        if index in keeps:
            seen[:, prefix:] = torch.zeros_like(seen[:, prefix:]).scatter(1, keeps[index], True)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = layer(hidden, mask[:, None, None].expand(-1, 1, seen.shape[1], -1))
    return read(name, model, hidden)


def masked_family(name, keeps):
    """The family, whose prompts have the visual tokens of the tower in which patches are masked."""

    class Masked(type(MLLMS[name])):
        def encoded(self, model, modality, inputs):
            output = super().encoded(model, modality, inputs)
            output.pooler_output = masked_tower(name, model, inputs["pixel_values"], keeps)
            return output

    return Masked()


def keeps_of(stage, number):
    """(I, K) patches of each image that a stage keeps, from a trace of batch rows of any numbers of images."""
    rows = []
    for row in stage.keep:
        images = sorted({token // number for token in row})
        rows += [torch.tensor([token % number for token in row if token // number == image]) for image in images]
    return torch.stack(rows)


class InTower(Pruner):
    """Keeps patches that a fixed random direction likes, at some layers of the tower, and perhaps at other stages."""

    def __init__(self, *layers, after=(), positions="repacked", requires=(), select=None, inside=None):
        object.__setattr__(self, "positions", positions)
        own = {
            "at": tuple(each if isinstance(each, Stage) else tp.stages.tower(each) for each in layers),
            "after": after,
            "needs": frozenset(requires),
            "choose": select,
        }
        own["inside"] = inside or Within(positions=positions)
        for key, value in own.items():
            object.__setattr__(self, key, value)

    @property
    def requires(self):
        return self.needs

    def stages(self, spec):
        return (*self.at, *self.after)

    def counts(self, spec, keep, total):
        number = len(self.at) + len(self.after)
        return tuple(round(total * (keep / total) ** (step / number)) for step in range(1, number + 1))

    def steps(self, spec):
        """Inside the LLM what the text attends to stays, unless told otherwise."""
        steps = super().steps(spec)
        return tuple(replace(step, selector=self.inside) if step.stage.inside else step for step in steps)

    def _select(self, tokens, k):
        if self.choose is not None:
            return self.choose(tokens, k)
        direction = torch.randn(tokens.features.shape[-1], generator=torch.Generator().manual_seed(3))
        order = (tokens.features.float() @ direction.to(tokens.features.device)).argsort(
            dim=1, descending=True, stable=True
        )
        return tp.TokenSelection.from_order(order[:, :k], tokens.num_tokens)
