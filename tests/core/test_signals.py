"""Signals are values that can be written down and read again."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tokenprune.core.errors import SelectionError
from tokenprune.core.signals import KINDS, Encoder, Signal, Sizes, TextAttention, TowerAttention, TowerKeys, parse
from tokenprune.core.sizes import ModelSpec, TransformerSpec

PLAIN = (
    "clip_image_embeds clip_text_embeds prompt_embeds prompt_mask cls_attention received_attention vision_hidden "
    "encoder_features resized_features evidence keys head_keys text_attention text_mask text_embeds image_embeds "
    "text_keys normed_hidden text_normed_hidden rope_similarity mean_keys cls_logits "
    "mean_values cls_value_attention"
)


def test_plain_names_are_public():
    ours = {name for kind in KINDS.values() if kind.__module__.startswith("tokenprune.") for name in kind.plain_names}
    assert ours == set(PLAIN.split())
    assert all(parse(name) == name for name in ours)


@pytest.mark.parametrize(
    ("signal", "written"),
    [
        (TowerAttention(), "tower_attention[query=cls,layer=None]"),
        (TowerAttention("patches", -2), "tower_attention[query=patches,layer=-2]"),
        (TowerAttention("cls", 0.25), "tower_attention[query=cls,layer=0.25]"),
        (TowerAttention("cls", 1e-05), "tower_attention[query=cls,layer=1e-05]"),
        (TextAttention("own", "all"), "text_attention[layer=own,rows=all]"),
        (Encoder("timm:vit"), "encoder[source=timm:vit]"),
    ],
)
def test_written_and_read(signal, written):
    assert str(signal) == written
    assert parse(signal) == parse(written) == signal


def test_parameters_that_are_left_out_are_the_default_ones():
    assert parse("tower_keys[layer=3]") == TowerKeys(3)
    assert parse("tower_attention[layer=-1]") == TowerAttention("cls", -1)


@pytest.mark.parametrize("name", ["kyes", "tower_keys[layr=3]", "tower_keys[", ""])
def test_what_is_no_signal(name):
    with pytest.raises(SelectionError):
        parse(name)


def test_a_class_of_a_third_party_is_known_at_once():
    @dataclass(frozen=True)
    class FrameMotion(Signal):
        """(B, N)."""

        shape: ClassVar[str] = "tokens"
        window: int = 2

    try:
        assert parse("frame_motion") == "frame_motion"
        assert parse("frame_motion[window=4]") == FrameMotion(4)
    finally:
        del KINDS["frame_motion"]


def test_stand_ins_have_the_shape_of_the_signal():
    spec = ModelSpec(TransformerSpec(4, 32, 64, 4, 2, 8, 3), vocabulary=9, visual_tokens=10)
    sizes = Sizes(spec, tokens=7, entered=10, text=5)
    assert TextAttention().stand_in(sizes).shape == (1, 4, 1, 7)
    assert TextAttention(rows="all").stand_in(sizes).shape == (1, 4, 5, 7)
    assert TowerKeys().stand_in(sizes).shape == (1, 7, 32)
