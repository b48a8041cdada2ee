import pytest
import torch

from tokenprune.functional.gram import STRIP, gram


@pytest.mark.parametrize("n", [1, STRIP, STRIP + 1, 3 * STRIP + 5])
def test_products_of_all_with_all(n):
    x = torch.randn(2, n, 7, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(gram(x), x @ x.mT)
