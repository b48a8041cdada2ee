import pytest
import torch

from tokenprune.core.errors import SelectionError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import Keys, OneOf, PairedText, TextAttention, TowerAttention, TowerKeys
from tokenprune.core.tokens import VisualTokens

F = torch.randn(2, 6, 4)


def test_signals_under_their_plain_names():
    tokens = VisualTokens(F, {"keys": torch.ones(2, 6, 3), TextAttention(rows="all"): torch.ones(2, 1, 3, 6)})
    for signal in (TowerKeys(), TowerKeys(layer=3), Keys()):
        assert torch.equal(tokens.signal(signal), torch.ones(2, 6, 3))
    assert list(tokens.signals) == ["keys", "text_attention[layer=previous,rows=all]"]
    assert tokens.get(TextAttention(rows="last")) is None  # other parameters were given
    assert tokens.signals["text_attention"] is tokens.signal(TextAttention(rows="all"))
    shared = VisualTokens(F, {"clip_text_embeds": torch.ones(5, 3)})
    assert shared.signal(PairedText("clip")).shape == (2, 5, 3)


def test_the_first_alternative_that_is_given():
    either = OneOf(TowerAttention("cls"), TowerAttention("patches"))
    cls, received = torch.zeros(2, 1, 6), torch.ones(2, 1, 6)
    assert VisualTokens(F, {"received_attention": received}).signal(either) is received
    assert VisualTokens(F, {"received_attention": received, "cls_attention": cls}).signal(either) is cls
    with pytest.raises(SelectionError, match="'cls_attention or received_attention' is needed"):
        VisualTokens(F).signal(either)


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
        ({"features": F, "signals": {"tower_keys[leyer=3]": F}}, "no parameter 'leyer'; did you mean 'layer'"),
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
        ([], {}, "of some rows"),
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
