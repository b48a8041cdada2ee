"""Which tokens go on, in which order, and what follows from it, worked out by hand."""

import pytest
import torch

from tokenprune.engine.decoder.alive import Alive


def prompt(*rows):
    """Of rows of letters: t is text, i a visual token, e padding."""
    letters = [list(row) for row in rows]
    visual = torch.tensor([[x == "i" for x in row] for row in letters])
    valid = torch.tensor([[x != "e" for x in row] for row in letters])
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    return Alive.prompt(valid, visual, number)


def bools(*rows):
    return torch.tensor([[x == "1" for x in row] for row in rows])


def nothing(batch):
    return torch.zeros(batch, 0, dtype=torch.bool)


def test_a_prompt():
    alive = prompt("eetiit", "tiitit")
    assert alive.slots.tolist() == [list(range(6))] * 2
    assert alive.number.tolist() == [[-1, -1, -1, 0, 1, -1], [-1, 0, 1, -1, 2, -1]]
    assert alive.counts == [2, 3]
    assert alive.kept == [[0, 1], [0, 1, 2]]
    assert alive.shift.tolist() == [0, 0]
    assert alive.closed is None
    assert alive.padded
    assert not alive.appended
    assert not prompt("tit").padded


def test_padding_is_not_visual():
    visual = bools("11")
    alive = Alive.prompt(bools("01"), visual, torch.tensor([[0, 1]]))
    assert alive.visual.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        (["tit", "eit"], False),
        (["tit", "tie"], True),
        (["tit"], False),
        (["ete", "tit"], False),
        (["eit", "tie"], False),
    ],
)
def test_the_side_of_the_padding(rows, right):
    assert prompt(*rows).right is right


@pytest.mark.parametrize("repack", [False, True])
def test_dropping(repack):
    alive, order = prompt("tiiit").keep(bools("10101"), nothing(1), repack=repack)
    assert order.tolist() == alive.slots.tolist() == [[0, 2, 4]]
    assert alive.visual.tolist() == [[False, True, False]]
    assert alive.number.tolist() == [[-1, 1, -1]]
    assert alive.kept == [[1]]
    assert alive.counts == [1]
    assert not alive.appended
    whole = torch.arange(10, 15)[None]
    assert alive.positions(whole).tolist() == ([[10, 11, 12]] if repack else [[10, 12, 14]])
    assert alive.shift.tolist() == ([2] if repack else [0])
    assert (alive.closed is None) != repack


def test_rows_are_padded_anew_where_they_were():
    stay = bools("001001", "100111")
    left, order = prompt("eetiit", "tiitit").keep(stay, nothing(2), repack=True)
    assert left.valid.tolist() == [[False, False, True, True], [True] * 4]
    assert left.slots[0, 2:].tolist() == [2, 5]
    assert left.slots[1].tolist() == order[1].tolist() == [0, 3, 4, 5]
    whole = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    assert left.positions(whole).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert left.shift.tolist() == [2, 2]
    assert not left.right
    assert left.counts == [0, 1]
    right, order = prompt("tiitee", "tiitit").keep(bools("100100", "100111"), nothing(2), repack=True)
    assert right.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert order[0, :2].tolist() == right.slots[0, :2].tolist() == [0, 3]
    assert right.positions(torch.arange(6)[None]).tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert right.shift.tolist() == [2, 2]
    assert right.right


def test_what_was_padding_cannot_stay():
    alive, _ = prompt("eit").keep(bools("111"), nothing(1), repack=False)
    assert alive.slots.tolist() == [[1, 2]]


def test_closing_gaps_twice():
    """What is left counts on from the first id without gaps, after each stage."""
    whole = torch.arange(10, 18)[None]
    first, order = prompt("tiiititt").keep(bools("10101111"), nothing(1), repack=True)
    assert order.tolist() == [[0, 2, 4, 5, 6, 7]]
    assert first.positions(whole).tolist() == [[10, 11, 12, 13, 14, 15]]
    second, order = first.keep(bools("101011"), nothing(1), repack=True)
    assert order.tolist() == [[0, 2, 4, 5]]
    assert second.slots.tolist() == [[0, 4, 6, 7]]
    assert second.positions(whole).tolist() == [[10, 11, 12, 13]]
    assert second.shift.tolist() == [4]
    assert second.counts == [0]


def test_closing_gaps_once_and_then_leaving_them():
    whole = torch.arange(8)[None]
    first, _ = prompt("tiiititt").keep(bools("10101111"), nothing(1), repack=True)
    second, _ = first.keep(bools("101011"), nothing(1), repack=False)
    assert second.positions(whole).tolist() == [[0, 2, 4, 5]]
    assert second.shift.tolist() == [2]
    third, _ = prompt("tiiititt").keep(bools("10101111"), nothing(1), repack=False)
    assert third.positions(whole).tolist() == [[0, 2, 4, 5, 6, 7]]
    fourth, _ = third.keep(bools("101011"), nothing(1), repack=True)
    assert fourth.positions(whole).tolist() == [[0, 3, 4, 5]]  # only the gaps of its own stage
    assert fourth.shift.tolist() == [2]


@pytest.mark.parametrize("repack", [False, True])
def test_appending(repack):
    """Two tokens after the last visual one of the first row, one in the second, where another fills up."""
    rows = prompt("tiiitt", "eetiit")
    alive, order = rows.keep(bools("110011", "001101"), bools("11", "10"), repack=repack)
    assert order[0].tolist() == [0, 1, 6, 7, 4, 5]
    assert alive.slots[0].tolist() == [0, 1, 3, 3, 4, 5]
    assert alive.number[0].tolist() == [-1, 0, -1, -1, -1, -1]
    assert alive.visual[0].tolist() == [False, True, True, True, False, False]
    assert order[1, 2:].tolist() == [2, 3, 6, 5]
    assert alive.slots[1, 2:].tolist() == [2, 3, 4, 5]
    assert alive.valid.tolist() == [[True] * 6, [False] * 2 + [True] * 4]
    assert alive.counts == [3, 2]
    assert alive.kept == [[0], [0]]
    assert alive.appended
    if repack:
        whole = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])
        assert torch.equal(alive.positions(whole), whole)  # as many as before
        assert alive.shift.tolist() == [0, 0]


def test_appended_tokens_can_leave_and_others_come_after_them():
    first, _ = prompt("tiiit").keep(bools("11001"), bools("11"), repack=True)
    assert first.slots.tolist() == [[0, 1, 3, 3, 4]]
    second, order = first.keep(bools("10011"), bools("1"), repack=True)
    assert order.tolist() == [[0, 3, 5, 4]]
    assert second.slots.tolist() == [[0, 3, 3, 4]]
    assert second.visual.tolist() == [[False, True, True, False]]
    assert second.kept == [[]]
    assert second.counts == [2]
    assert second.positions(torch.arange(5)[None]).tolist() == [[0, 1, 2, 3]]
    assert second.shift.tolist() == [1]
    third, _ = second.keep(bools("1001"), nothing(1), repack=False)
    assert third.appended  # once there were some; only a mask asks


def test_appending_where_rows_are_padded_on_the_right():
    alive, order = prompt("titee", "tiiit").keep(bools("10100", "10001"), bools("10", "11"), repack=True)
    assert order[0, :3].tolist() == [0, 5, 2]
    assert order[1].tolist() == [0, 5, 6, 4]
    assert alive.valid.tolist() == [[True, True, True, False], [True] * 4]
    assert alive.positions(torch.arange(5)[None]).tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert alive.shift.tolist() == [0, 1]


def test_a_row_without_visual_tokens_gets_none():
    alive, order = prompt("ttt", "tit").keep(bools("111", "101"), bools("0", "1"), repack=True)
    assert order.tolist() == [[0, 1, 2], [0, 3, 2]]
    assert alive.visual.tolist() == [[False] * 3, [False, True, False]]
    assert alive.counts == [0, 1]


def test_gathering_from_the_prompt():
    alive, _ = prompt("tiit", "etit").keep(bools("1001", "0101"), nothing(2), repack=False)
    x = torch.arange(8.0).view(2, 4, 1)
    assert alive.gather(x)[..., 0].tolist() == [[0, 3], [5, 7]]
    assert alive.gather(x[:1])[..., 0].tolist() == [[0, 3], [1, 3]]


def test_spreading_over_the_prompt():
    """A column that is gone has what the last one before it has; an appended token has no column."""
    alive, _ = prompt("tiiitt").keep(bools("110011"), bools("1"), repack=True)
    x = torch.tensor([[10.0, 11, 99, 14, 15]])[..., None]
    assert alive.spread(x, 6)[..., 0].tolist() == [[10, 11, 11, 11, 14, 15]]
    alive, _ = prompt("eetiit", "tiitit").keep(bools("001001", "100111"), nothing(2), repack=False)
    x = torch.tensor([[7.0, 7, 12, 15], [20, 23, 24, 25]])[..., None]
    assert alive.spread(x, 6)[0, 2:, 0].tolist() == [12, 12, 12, 15]
    assert alive.spread(x, 6)[1, :, 0].tolist() == [20, 20, 20, 23, 24, 25]
    assert alive.spread(x, 8)[1, :, 0].tolist() == [20, 20, 20, 23, 24, 25, 25, 25]


def test_the_first_tokens():
    whole, _ = prompt("tiit").keep(bools("1011"), nothing(1), repack=True)
    assert whole.first(3) is whole
    whole.memo["x"] = 1
    cut = whole.first(2)
    assert cut.slots.tolist() == [[0, 2]]
    assert cut.valid.shape == cut.visual.shape == cut.number.shape == cut.closed.shape == (1, 2)
    assert cut.memo == {}
    assert cut.shift.tolist() == whole.shift.tolist()
    assert prompt("tiit").first(2).closed is None


def test_another_device():
    alive = prompt("tit")
    assert alive.to(torch.device("cpu")) is alive
    moved = alive.to(torch.device("meta"))
    assert moved.slots.device == moved.shift.device == moved.valid.device == torch.device("meta")
    assert moved.memo is not alive.memo
    assert moved.right is alive.right
