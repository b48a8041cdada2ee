import pytest
import torch

from tokenprune.functional.cells import Cells, coarser

GRIDS = [(12, 12), (24, 24), (3, 7), (7, 4), (1, 9), (9, 1), (1, 1), (2, 30)]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_number_of_cells(grid):
    number = grid[0] * grid[1]
    for k in range(1, number + 1):
        cells = Cells.of(k, grid)
        assert cells.owner.unique().tolist() == list(range(k))  # none is empty
        assert torch.equal(cells.owner[cells.centers], torch.arange(k))
        assert (cells.centers.diff() > 0).all()
        y, x = torch.arange(number) // grid[1], torch.arange(number) % grid[1]
        for cell in range(k) if number < 50 else ():
            inside = cells.owner == cell
            sides = [int(place[inside].max() - place[inside].min()) + 1 for place in (y, x)]
            assert int(inside.sum()) == sides[0] * sides[1]  # a rectangle
    assert torch.equal(Cells.of(number, grid).centers, torch.arange(number))


def test_by_hand():
    cells = Cells.of(4, (4, 4))
    assert cells.owner.view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert cells.centers.tolist() == [0, 2, 8, 10]  # of four equally near ones, the upper left
    assert Cells.of(1, (3, 3)).centers.tolist() == [4]
    # Five are no grid of nearly square cells: bands of two and three.
    assert Cells.of(5, (6, 6)).owner.view(6, 6).tolist() == [[0, 0, 0, 1, 1, 1]] * 3 + [[2, 2, 3, 3, 4, 4]] * 3


@pytest.mark.parametrize(("k", "grid", "shape"), [
    (36, (12, 12), (6, 6)), (24, (12, 12), (4, 6)), (8, (12, 12), (2, 4)), (64, (24, 24), (8, 8)), (8, (4, 16), (1, 8)),
])  # fmt: skip
def test_cells_are_those_of_the_coarser_grid(k, grid, shape):
    assert coarser(k, grid) == shape
    owner = Cells.of(k, grid).owner.view(grid)
    rows, columns = owner[:, 0].unique(return_counts=True)[1], owner[0].unique(return_counts=True)[1]
    assert (len(rows), len(columns)) == shape
    assert rows.max() - rows.min() <= 1
    assert columns.max() - columns.min() <= 1


def test_the_next_larger_grid():
    assert coarser(47, (12, 12)) == (6, 8)
    assert coarser(3, (12, 12)) == (2, 2)
    assert coarser(7, (1, 9)) == (1, 7)
    for k in range(1, 145):
        height, width = coarser(k, (12, 12))
        assert k <= height * width <= 144
        assert max(height / width, width / height) <= 2
