import pytest
import torch

from tokenprune.core.errors import SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import LLM_SIGNALS, Signal
from tokenprune.core.tokens import VisualTokens

F = torch.randn(2, 6, 4)


def test_signals_are_public_strings():
    assert [s.value for s in Signal] == [
        "clip_image_embeds",
        "clip_text_embeds",
        "prompt_embeds",
        "prompt_mask",
        "cls_attention",
        "received_attention",
        "vision_hidden",
        "encoder_features",
        "resized_features",
        "evidence",
        "keys",
        "text_attention",
        "text_mask",
        "text_embeds",
        "image_embeds",
        "text_keys",
        "normed_hidden",
        "text_normed_hidden",
        "rope_similarity",
    ]
    assert set(list(Signal)[10:]) == LLM_SIGNALS
    tokens = VisualTokens(F, {"keys": torch.ones(2, 6, 3)})
    assert torch.equal(tokens.signal(Signal.KEYS), torch.ones(2, 6, 3))
    shared = VisualTokens(F, {"clip_text_embeds": torch.ones(5, 3)})
    assert shared.signal(Signal.CLIP_TEXT_EMBEDS).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.randn(6, 4)}, "features"),
        ({"features": torch.ones(2, 6, 4, dtype=torch.long)}, "floating"),
        ({"features": torch.randn(2, 0, 4)}, "non-empty"),
        *(
            ({"features": F.clone().index_fill_(1, torch.tensor(2), float(x))}, "finite")
            for x in ("nan", "inf", "-inf")
        ),
        ({"features": F, "signals": {"kyes": F}}, "did you mean 'keys'"),
        ({"features": F, "signals": {"keys": F[:1]}}, "1 rows"),
        ({"features": F, "grid": (2, 2)}, "grid"),
        ({"features": F, "valid": torch.ones(2, 5, dtype=torch.bool)}, "valid"),
        ({"features": F, "valid": torch.ones(2, 6)}, "valid"),
        ({"features": F, "row_ids": torch.ones(3)}, "row_ids"),
    ],
)
def test_bad_visual_tokens(arguments, message):
    with pytest.raises(SelectionError, match=message):
        VisualTokens(**arguments)


@pytest.mark.parametrize(
    ("keep", "more", "message"),
    [
        ([[0, 2, 1]], {}, "strictly increasing"),
        ([[0, 1, 1]], {}, "strictly increasing"),
        ([[-1, 2]], {}, "strictly increasing"),
        ([[0, 6]], {}, "within"),
        ([[]], {}, "non-empty"),
        ([[0, 1]], {"scores": torch.zeros(1, 5)}, "scores"),
        ([[0, 1]], {"order": torch.tensor([[0, 2]])}, "order"),
        ([[0, 1]], {"merged": torch.zeros(1, 1, 4)}, "merged"),
        ([[0, 1]], {"merged": torch.zeros(2, 2, 4)}, "merged"),
    ],
)
def test_bad_selections(keep, more, message):
    with pytest.raises(SelectionError, match=message):
        TokenSelection(torch.tensor(keep, dtype=torch.long), 6, **more)


def test_merged_features_may_have_appended_ones_behind_them():
    for number in (2, 5):
        merged = torch.zeros(1, number, 4)
        assert TokenSelection(torch.tensor([[0, 1]]), 6, merged=merged).merged is merged


def test_selection_from_order():
    selection = TokenSelection.from_order(torch.tensor([[4, 0, 3]]), 6)
    assert selection.keep.tolist() == [[0, 3, 4]]
    assert selection.order.tolist() == [[4, 0, 3]]
