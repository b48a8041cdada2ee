import pytest
import torch
from golden_data import load

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.signals import TowerAttention, TowerLogits
from tokenprune.core.stages import PRE_LLM
from tokenprune.engine.loading import session_for
from tokenprune.pruners.globalcom2.tiles import Tiles
from tokenprune.testing.families import families

GLOBALCOM2 = create_pruner("globalcom2")
DOWN = create_pruner("globalcom2", rounding="down")


def placed(whole, heights, widths):
    """Segment and place of the tokens of a picture (height, width), and of tiles whose lines are put together."""
    lines, columns = whole
    place = [(0, y, x) for y in range(lines) for x in range(columns)]
    for line, height in enumerate(heights):
        for y in range(height):
            for column, width in enumerate(widths):
                place += [(1 + line * len(widths) + column, y, x) for x in range(width)]
    found = torch.tensor(place)
    return found[:, 0], found


def tokens_of(logits, whole, heights, widths):
    segment, place = placed(whole, heights, widths)
    signals = {str(TowerLogits(-1)): logits}
    return VisualTokens(torch.zeros(len(logits), len(segment), 2), signals, segment=segment, place=place)


def golden(name, heights, above):
    """Tokens of a golden file whose tiles have so many lines, below so many of padding, and the number of each."""
    case = load(name)
    segment, place = placed((24, 24), heights, (24, 24))
    line = place[:, 1] + torch.where((segment == 1) | (segment == 2), above, 0)
    number = segment * 576 + line * 24 + place[:, 2]
    logits = case["cls_logits"].flatten()[number][None, None]
    return case, tokens_of(logits, (24, 24), heights, (24, 24)), number


CASES = [("globalcom2_square_r0p25", (24, 24), 0, 720), ("globalcom2_wide_r0p25", (15, 15), 9, 504)]


@pytest.mark.parametrize(("name", "heights", "above", "k"), CASES)
def test_tokens_and_their_order_are_those_of_the_official_code(name, heights, above, k):
    case, tokens, number = golden(name, heights, above)
    wanted = case["sequence"][case["sequence"] >= 0].long()
    chosen = DOWN.select(tokens, k)
    found = number[chosen.sequence[0]]
    assert torch.equal(found[:144], wanted[:144])  # of the whole picture, in their order
    assert torch.equal(found.sort().values, wanted.sort().values)
    if not above:  # else the official code moves tokens to other lines
        assert torch.equal(found, wanted)
    # As many as the budget says, and the official ones among them.
    exact = GLOBALCOM2.select(tokens, k)
    assert exact.keep.shape == (1, k)
    assert set(chosen.keep[0].tolist()) < set(exact.keep[0].tolist())
    more = tokens.segment[exact.keep[0]].bincount() - tokens.segment[chosen.keep[0]].bincount()
    assert more.tolist() == ([0, 0, 0, 0, 1] if not above else [0, 0, 1, 0, 1])


def test_by_hand():
    # A picture of 2 x 4, whose right half is attended to, and two tiles of 2 x 2, side by side.
    z = torch.tensor([1.0, 2, 3, 50, 2, 1, 40, 40, 1, 2, 0, 5, 4, 3, 0, -5])
    tokens = tokens_of(z.view(1, 1, 16), (2, 4), (2,), (2, 2))
    assert tokens.segment.tolist() == [0] * 8 + [1, 1, 2, 2, 1, 1, 2, 2]
    tiles = Tiles.of(tokens)
    assert (tiles.sizes, tiles.whole, tiles.stitched, tiles.columns) == ((8, 4, 4), (2, 4), (2, 4), 2)
    torch.testing.assert_close(tiles.weights(z[None]), torch.tensor([[0.5, 1.5]]), atol=1e-4, rtol=0)
    # Half of 8 of the whole picture, and of 4 more 1 and 3: 12 of the first tile, and all but 15 of the second.
    chosen = GLOBALCOM2.select(tokens, 8)
    assert chosen.sequence.tolist() == [[3, 6, 7, 2, 10, 11, 12, 14]]
    assert tokens.segment[chosen.keep[0]].bincount().tolist() == [4, 1, 3]
    assert create_pruner("globalcom2", order="raster").select(tokens, 8).sequence is None


def test_scores_are_logits_of_the_tile_and_of_the_picture_at_its_place():
    z = torch.randn(2, 24 * 2, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(z[:, None], (4, 4), (3, 1), (5, 3))
    tiles, found = Tiles.of(tokens), Tiles.of(tokens).scores(z)
    assert (tiles.stitched, tiles.columns) == ((4, 8), 2)
    assert torch.equal(found[:, :16], z[:, :16])
    for row in range(2):
        around = torch.nn.functional.interpolate(z[row, :16].view(1, 1, 4, 4), (4, 8), mode="bilinear").flatten()
        for tile in range(1, 5):
            own, there = z[row][tokens.segment == tile], around[tokens.segment[16:] == tile]
            wanted = own / own.norm() + there / there.norm()
            torch.testing.assert_close(found[row][tokens.segment == tile], wanted)


@pytest.mark.parametrize(("heights", "widths"), [((4,), (5, 5)), ((5, 5), (4,)), ((3, 4), (2, 5)), ((2, 6, 2), (3,))])
def test_tiles_are_found_in_lines_and_columns(heights, widths):
    segment, place = placed((5, 5), heights, widths)
    tokens = VisualTokens(torch.zeros(1, len(segment), 1), segment=segment, place=place)
    tiles = Tiles.of(tokens)
    assert (tiles.stitched, tiles.columns) == ((sum(heights), sum(widths)), len(widths))


def test_budgets_are_met_where_a_tile_is_full():
    z = torch.zeros(2, 1, 32)
    z[:, 0, 3] = 1000  # of the second tile
    tokens = tokens_of(z, (4, 4), (4,), (2, 2))
    for k in range(1, 33):
        keep = GLOBALCOM2.select(tokens, k).keep
        assert keep.shape == (2, k)
        assert int((tokens.segment[keep[0]] == 0).sum()) == max(round(16 * k / 32), k - 16)
    assert tokens.segment[GLOBALCOM2.select(tokens, 24).keep[0]].bincount().tolist() == [12, 4, 8]


def test_a_picture_without_tiles_keeps_what_cls_attends_to():
    z = torch.tensor([[[1.0, 5, -2, 5, 3], [1, 5, -2, 5, 3]]])
    tokens = VisualTokens(torch.zeros(1, 5, 2), {"cls_logits": z})
    chosen = GLOBALCOM2.select(tokens, 3)
    assert chosen.keep.tolist() == [[1, 3, 4]]
    assert chosen.sequence.tolist() == [[1, 3, 4]]


def test_tiles_without_places_are_refused():
    signals = {"cls_logits": torch.ones(1, 1, 6)}
    segment = torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.raises(SelectionError, match="where tokens are in their tiles"):
        GLOBALCOM2.select(VisualTokens(torch.ones(1, 6, 2), signals, segment=segment), 3)
    place = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [2, 0, 0], [2, 3, 0]])
    with pytest.raises(SelectionError, match="tiles in lines and columns"):
        GLOBALCOM2.select(VisualTokens(torch.ones(1, 6, 2), signals, segment=segment, place=place), 3)


class Seen(tp.Pruner):
    """Keeps all, and notes what it is given."""

    requires = frozenset({TowerLogits(), TowerLogits(-1), TowerAttention("cls"), TowerAttention("cls", -1)})
    seen: tuple = ()

    def _select(self, tokens, k):
        object.__setattr__(self, "seen", (*self.seen, tokens))
        return tp.TokenSelection(torch.arange(k).repeat(tokens.batch_size, 1), tokens.num_tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_attention_is_the_softmax_of_logits(name):
    """The attention is a part of a softmax over CLS, too, so quotients of tokens are compared."""
    model, processor = families()[name].build("sdpa")
    pruner = Seen()
    session_for(model, processor).prune_inputs(families()[name].ask(processor, 1), pruner, tp.Budget(keep_ratio=0.5))
    assert pruner.seen
    for tokens in pruner.seen:
        for layer in (None, -1):
            logits, attention = tokens.signal(TowerLogits(layer)), tokens.signal(TowerAttention("cls", layer))
            assert (logits < 0).any()
            wanted = attention / attention.sum(-1, keepdim=True)
            torch.testing.assert_close(logits.softmax(-1), wanted, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_on_llava_next_tiles_share_a_budget():
    family = families()["llava_next"]
    model, processor = family.build("sdpa")
    session, inputs = session_for(model, processor), family.ask(processor, 1, 2)
    pruned = session.prune_inputs(inputs, GLOBALCOM2, tp.Budget(keep_tokens=30))
    kept = [int(row.sum()) for row in family.placeholder(model, pruned.inputs["input_ids"])]
    whole = [int(row.sum()) for row in family.placeholder(model, inputs["input_ids"])]
    assert all(after < before for after, before in zip(kept, whole, strict=True))
    assert sum(choice.selection.keep.shape[1] * len(choice.units) for choice in pruned.chosen) == 90
    assert all(choice.selection.sequence is not None for choice in pruned.chosen)
    assert [step.stage for step in GLOBALCOM2.steps(session.adapter.spec)] == [PRE_LLM]


@pytest.mark.parametrize("options", [{"order": "random"}, {"rounding": "up"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="Allowed: "):
        create_pruner("globalcom2", **options)
