"""The simulated devices refuse what CUDA refuses, allow what it allows, and compute what the CPU does."""

import pytest
import torch
from simcuda import Machine, MixedDevicesError, Simulated
from torch.nn.functional import scaled_dot_product_attention


@pytest.fixture(autouse=True)
def machine():
    with Machine():
        yield


ZERO, ONE, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")


def rows(device):
    return torch.arange(6.0).view(2, 3).to(device)


@pytest.mark.parametrize("other", [ONE, CPU])
@pytest.mark.parametrize(
    "meet",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y.mT,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.cat([x[0, :1], y[0, :1]]),
        lambda x, y: x.gather(1, y.long() % 3),
        lambda x, y: torch.where(x > 2, x, y),
        lambda x, y: x.add_(y),
        lambda x, y: x.index_put((torch.tensor([0], device=ZERO),), y[:1]),
        lambda x, y: torch.nn.functional.embedding(y.long() % 2, x),
    ],
)
def test_two_devices_do_not_meet(meet, other):
    meet(rows(ZERO), rows(ZERO))
    with pytest.raises(MixedDevicesError, match="cuda:0"):
        meet(rows(ZERO), rows(other))


def test_indices_may_be_on_the_cpu_but_on_no_other_device():
    index = torch.tensor([1])
    assert rows(ZERO)[index].tolist() == [[3, 4, 5]]
    with pytest.raises(MixedDevicesError):
        rows(ZERO)[index.to(ONE)]
    with pytest.raises(MixedDevicesError):
        rows(CPU)[index.to(ONE)]


def test_numbers_of_the_cpu_may_meet_any_device():
    number = torch.tensor(2.0)
    x = rows(ZERO) * number
    x[0, 0] = number
    x[torch.tensor([1])] = number
    assert x.tolist() == [[2, 2, 4], [2, 2, 2]]
    with pytest.raises(MixedDevicesError):
        rows(ZERO) * number.to(ONE)


def test_what_is_made_of_tensors_is_on_their_device():
    for device in (ZERO, ONE):
        x = rows(device)
        made = [x.sum(), x[0], x.argsort(), x.new_zeros(2), torch.zeros_like(x), x.nonzero(), x.new_tensor([1.0])]
        made += [torch.arange(3, device=device), torch.tensor([1, 2], device=device), torch.ones(2).to(device)]
        assert {y.device for y in made} == {device}
        assert all(isinstance(y, Simulated) for y in made)
    assert torch.zeros(2, device="cuda").device == ZERO
    assert rows(ZERO).to(ONE).device == ONE


def test_values_come_to_the_cpu_by_asking():
    x = rows(ZERO)
    assert x.cpu().device == CPU
    assert not isinstance(x.cpu(), Simulated)
    assert (x.tolist(), x[1, 2].item(), bool((x >= 0).all())) == (rows(CPU).tolist(), 5, True)
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()


def test_what_changes_in_place_stays_itself():
    x = rows(ZERO)
    assert x.mul_(2) is x
    assert torch.add(x, 1, out=x) is x
    x[0].copy_(rows(CPU)[1])
    assert x.tolist() == [[3, 4, 5], [7, 9, 11]]


def test_attention_is_that_of_the_cpu():
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    on_cpu = scaled_dot_product_attention(q, q, q, mask)
    found = scaled_dot_product_attention(q.to(ONE), q.to(ONE), q.to(ONE), mask.to(ONE))
    assert found.device == ONE
    torch.testing.assert_close(found.cpu(), on_cpu)
    with pytest.raises(MixedDevicesError):
        scaled_dot_product_attention(q.to(ONE), q.to(ONE), q.to(ONE), mask.to(ZERO))
