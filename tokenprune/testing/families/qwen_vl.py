"""Tiny Qwen2-VL and Qwen2.5-VL of random weights, their processors, and how they number a prompt's positions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.families.parts import randomise
from tokenprune.testing.pictures import QUESTIONS

PATCH, MERGE = 4, 2  # pixels; patches of a visual token in height and width
SIZES = ((40, 40), (24, 48), (56, 32))  # height and width of each picture in turn, pixels
FRAMES = 6  # of a video; two make a frame of the model
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE + "' }}{% elif part['type'] == 'video' %}{{ '" + VIDEO + "' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tokenizer() -> Any:
    """The tokenizer of the embedded model with the marks of this family."""
    from transformers import PreTrainedTokenizerFast

    from tokenprune.embedded.tokenizer import build_tokenizer

    core, names = build_tokenizer().backend_tokenizer, {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", model_max_length=4096, **names)
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL)})
    return tokenizer


def tiny_processor(kind: str) -> Any:
    """A new processor of this family for tiny pictures."""
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    sizes = {"patch_size": PATCH, "merge_size": MERGE}
    video = Qwen3VLVideoProcessor if kind == "Qwen3VL" else Qwen2VLVideoProcessor
    pixels = {"shortest_edge": 2 * 16**2, "longest_edge": 10**6}
    return getattr(transformers, f"{kind}Processor")(
        Qwen2VLImageProcessor(**sizes, size={"shortest_edge": 16**2, "longest_edge": 10**6}),
        tiny_tokenizer(),
        video(**sizes, size=pixels, do_sample_frames=False),
        chat_template=TEMPLATE,
    )


def tiny_qwen(kind: str, attention: str, vision: Any, **text: Any) -> Any:
    """A model of ``kind`` that says words alone."""
    import transformers

    tokenizer = tiny_tokenizer()
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    tokens = dict(zip(names, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": None,
    }
    tower = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "num_heads": 4, **vision}
    config = getattr(transformers, f"{kind}Config")(text_config={**sizes, **text}, vision_config=tower, **tokens)
    torch.manual_seed(0)
    model = randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    with torch.no_grad():
        model.lm_head.weight[list(tokens.values())] = 0
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def pixels(seed: int, *shape: int) -> Any:
    """Random pixels, shape + (3,), uint8."""
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)


class QwenVL(Family):
    """Qwen2-VL or Qwen2.5-VL.

    Args:
        kind: prefix of the classes' names.
        vision: sizes of the tower.
        text: of the language model.
    """

    inside = ("original",)
    scopes = ("frame",)
    nominal = {"sizes": ((288, 288),)}  # noqa: RUF012

    def __init__(self, kind: str, vision: Any, **text: Any) -> None:
        self.kind, self.vision, self.text = kind, vision, text

    def make(self, attention: str) -> tuple[Any, Any]:
        return tiny_qwen(self.kind, attention, self.vision, **self.text), tiny_processor(self.kind)

    def ask(
        self,
        processor: Any,
        *images_per_row: int,
        seed: int = 0,
        side: str = "left",
        only: int | None = None,
        sizes: Any = SIZES,
        videos: Any = (),
        fps: float = 2.0,
    ) -> Inputs:
        """Images first, then ``videos`` of each row, with ``fps`` pictures a second."""
        videos = videos or [0] * len(images_per_row)
        texts = [
            "USER: " + "on the left " * row + f"where {IMAGE} " * images + f"when {VIDEO} " * clips
            + QUESTIONS[row] + " ASSISTANT:"
            for row, (images, clips) in enumerate(zip(images_per_row, videos, strict=True))
        ]  # fmt: skip
        pictures = [pixels(seed + n, *sizes[n % len(sizes)]) for n in range(sum(images_per_row))]
        clips = [pixels(100 + seed + n, FRAMES - 2 * n, *sizes[n % len(sizes)]) for n in range(sum(videos))]
        if only is not None:
            texts = texts[only : only + 1]
            pictures, clips = of_row(pictures, images_per_row, only), of_row(clips, videos, only)
        given: dict[str, Any] = {"images": [Image.fromarray(picture) for picture in pictures]} if pictures else {}
        if clips:
            metadata = [
                {"fps": fps, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))} for clip in clips
            ]
            given |= {"videos": clips, "videos_kwargs": {"video_metadata": metadata}}
        batch = dict(processor(text=texts, padding=True, padding_side=side, return_tensors="pt", **given))
        return {name: value for name, value in batch.items() if name != "video_metadata"}

    def row_positions(self, model: Any, inputs: Inputs) -> Callable[[int, int], Tensor]:
        tokens = {model.config.image_token_id: "image", model.config.video_token_id: "video"}
        grids = {name: self.grids(inputs, name) for name in ("image", "video")}
        paces = self.paces(model, inputs)
        rows = []
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            axes, following, left = [], 0, 0
            for token in ids[mask.bool()].tolist():
                if token in tokens and left == 0:
                    frames, height, width = grids[tokens[token]].pop(0)
                    pace = paces.pop(0) if tokens[token] == "video" else 1
                    axes += [
                        (following + int(time * pace), following + y, following + x)
                        for time in range(frames)
                        for y in range(height)
                        for x in range(width)
                    ]
                    left, following = frames * height * width, following + max(height, width)
                if token in tokens:
                    left -= 1
                    continue
                axes.append((following,) * 3)
                following += 1
            rows.append((axes, following))

        def positions(row: int, length: int) -> Tensor:
            axes, following = rows[row]
            more = [(following + step,) * 3 for step in range(length - len(axes))]
            return torch.tensor(axes + more).T[:, None]

        return positions

    def grids(self, inputs: Inputs, modality: str) -> list[Any]:
        """(frames, height, width) of each run of placeholders, visual tokens."""
        grids = inputs.get(f"{modality}_grid_thw")
        return [] if grids is None else [(t, h // MERGE, w // MERGE) for t, h, w in grids.tolist()]

    def paces(self, model: Any, inputs: Inputs) -> list[Any]:
        """How far apart a video's frames are in time, positions."""
        seconds = inputs.get("second_per_grid_ts")
        if self.kind == "Qwen2VL" or seconds is None:
            return [1] * FRAMES
        return [model.config.vision_config.tokens_per_second * float(each) for each in seconds]

    def closed(self, number: Tensor, visual: Tensor, before: Tensor, alive: Tensor) -> Tensor:
        """As if each image or frame had the rows and columns alone of which a token is left."""
        closed, length, index, shift = number.clone(), number.shape[-1], 0, 0
        while index < length:
            end = index
            while end < length and visual[end]:
                end += 1
            if end == index:
                closed[:, 0, index] = number[:, 0, index] - shift
                index += 1
                continue
            sides = []
            for axis in range(3):
                places = number[axis, 0, index:end].tolist()
                kept = {place for place, stays in zip(places, alive[index:end].tolist(), strict=True) if stays}
                for at, place in enumerate(places):
                    lost = sum(other < place for other in set(places) - kept)
                    closed[axis, 0, index + at] = place - shift - lost
                sides.append((len(set(places)), len(kept)))
            shift += max(sides[1][0], sides[2][0]) - max(sides[1][1], sides[2][1])
            index = end
        return closed


def of_row(things: Any, numbers: Any, row: int) -> Any:
    """What of a flat list is of one row of a batch."""
    before = sum(numbers[:row])
    return things[before : before + numbers[row]]


TWO = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
TWO_AND_A_HALF = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
FAMILIES = {"qwen2_vl": QwenVL("Qwen2VL", TWO), "qwen2_5_vl": QwenVL("Qwen2_5_VL", TWO_AND_A_HALF)}
