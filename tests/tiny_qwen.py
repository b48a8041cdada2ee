"""A tiny Qwen2.5-VL of random weights, for M-RoPE: positions with three axes. No adapter is needed for it."""

import functools

import torch
from tiny import randomise

PAD, START, IMAGE, END, WORDS = 0, 1, 2, 3, 10  # token ids; words count on from the last
GRIDS = [(8, 8), (4, 8), (8, 4)]  # patches of each image, height and width; four make a visual token


@functools.cache
def tiny_qwen(attention="sdpa"):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "window_size": 56,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": START, "vision_end_token_id": END}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    torch.manual_seed(0)
    model = randomise(Qwen2_5_VLForConditionalGeneration(config))
    with torch.no_grad():
        model.lm_head.weight[:WORDS] = 0  # it says words alone
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def ask(*images_per_row):
    """Inputs of a batch, padded on the left."""
    generator, rows, grids = torch.Generator().manual_seed(0), [], []
    for row, images in enumerate(images_per_row):
        ids = words(2 + row, generator)
        for _ in range(images):
            grids.append(GRIDS[len(grids) % len(GRIDS)])
            ids += [START, *[IMAGE] * (grids[-1][0] * grids[-1][1] // 4), END]
        rows.append(ids + words(4 + 2 * row, generator))
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    patches = sum(height * width for height, width in grids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(patches, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([(1, *grid) for grid in grids]),
    }


def words(number, generator):
    return torch.randint(WORDS, 64, (number,), generator=generator).tolist()


def positions_of(inputs):
    """(row, length) to (3, 1, length) position ids, by hand: an image's tokens count height and width apart."""
    grids = [(int(h) // 2, int(w) // 2) for _, h, w in inputs["image_grid_thw"]]
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        axes, following, left = [], 0, 0
        for token in ids[mask.bool()].tolist():
            if token == IMAGE and left == 0:
                height, width = grids.pop(0)
                axes += [(following, following + y, following + x) for y in range(height) for x in range(width)]
                left, following = height * width, following + max(height, width)
            if token == IMAGE:
                left -= 1
                continue
            axes.append((following,) * 3)
            following += 1
        rows.append((axes, following))

    def positions(row, length):
        axes, following = rows[row]
        more = [(following + step,) * 3 for step in range(length - len(axes))]
        return torch.tensor(axes + more).T[:, None]

    return positions


def embeds_of(model):
    def embeds(inputs):
        x = model.get_input_embeddings()(inputs["input_ids"])
        output = model.base_model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        x[inputs["input_ids"] == IMAGE] = torch.cat(list(output.pooler_output))
        return x

    return embeds
