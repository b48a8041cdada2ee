import numpy as np
import torch

from tokenprune.functional.outliers import high_outliers


def test_by_hand():
    # Quartiles 2 and 4, so the fence is at 7, which is itself inside.
    assert high_outliers(torch.tensor([[1.0, 2, 3, 4, 7], [1, 2, 3, 4, 7.1]])).tolist() == [0, 1]


def test_it_is_numpy_s_percentiles():
    rows = torch.rand(20, 41, generator=torch.Generator().manual_seed(0)).double() ** 9
    wanted = []
    for row in rows.numpy():
        low, high = np.percentile(row, [25, 75])
        wanted.append(int((row > high + 1.5 * (high - low)).sum()))
    assert high_outliers(rows).tolist() == wanted
    assert len(set(wanted)) > 3
