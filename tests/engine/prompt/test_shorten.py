import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenprune.engine.prompt.shorten import fresh, prune_prompt, shorten


def columns(ids, mask):
    ids = torch.tensor(ids)
    return {"input_ids": ids, "attention_mask": torch.tensor(mask), "position_ids": ids * 10, "labels": ids + 100}


def test_shorten_pads_where_the_prompts_were_padded():
    left = columns([[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 1, 1], [1, 1, 1, 1]])
    stay = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]]).bool()
    out = shorten(left, stay, pad_token_id=9)
    assert out["input_ids"].tolist() == [[9, 1], [4, 6]]
    assert out["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert out["position_ids"].tolist() == [[0, 10], [40, 60]]
    assert out["labels"].tolist() == [[-100, 101], [104, 106]]
    right = columns([[1, 2, 3, 0], [4, 5, 6, 7]], [[1, 1, 1, 0], [1, 1, 1, 1]])
    out = shorten(right, torch.tensor([[0, 0, 1, 0], [1, 0, 1, 0]]).bool(), pad_token_id=9)
    assert out["input_ids"].tolist() == [[3, 9], [4, 6]]
    assert out["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert out["labels"].tolist() == [[103, -100], [104, 106]]


def test_shorten_takes_positions_of_several_axes_and_leaves_the_rest():
    inputs = columns([[1, 2, 3]], [[1, 1, 1]])
    inputs |= {"position_ids": torch.arange(12).view(4, 1, 3), "other": torch.arange(3)[None], "max_new_tokens": 5}
    out = shorten(inputs, torch.tensor([[True, False, True]]), pad_token_id=0)
    assert out["position_ids"].tolist() == [[[0, 2]], [[3, 5]], [[6, 8]], [[9, 11]]]
    assert out["other"].tolist() == [[0, 1, 2]]
    assert out["max_new_tokens"] == 5


def test_keeping_all_keeps_the_padding():
    inputs = columns([[0, 0, 3], [0, 5, 6]], [[0, 0, 1], [0, 1, 1]])
    out = shorten(inputs, inputs["attention_mask"].bool(), pad_token_id=9)
    assert torch.equal(out["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize(("positions", "wanted"), [("original", [[10, 12, 14]]), ("repacked", [[10, 11, 12]])])
def test_positions(llava, positions, wanted):
    model, _ = llava
    ids = torch.tensor([[8, 4, 4, 4, 8]])
    inputs = {"input_ids": ids, "position_ids": torch.arange(10, 15)[None], "pixel_values": torch.zeros(1)}
    kept = torch.tensor([False, True, False])
    close = (lambda given, place, gone: given - gone.long().cumsum(1)) if positions == "repacked" else None
    out = prune_prompt(model, inputs, ids == 4, kept, close=close, pad_token_id=0)
    assert out["position_ids"].tolist() == wanted
    assert out["attention_mask"].tolist() == [[1, 1, 1]]
    assert "pixel_values" not in out


def test_a_fresh_copy_survives_what_beam_search_does():
    inputs = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[torch.zeros(2, 3)])}}
    fresh(inputs)["mm_encoder_outputs"]["image"].pooler_output = []
    assert len(inputs["mm_encoder_outputs"]["image"].pooler_output) == 1
