import pytest
import torch

from tokenprune.costs.latency import Stages, compare, time_call


def test_turns_interleave_and_the_first_is_not_counted():
    calls = []

    def unpruned():
        calls.append("a")
        return Stages(vision=9.0, selection=0.0, prefill=100.0 if len(calls) == 1 else 2.0)

    def pruned():
        calls.append("b")
        return Stages(vision=3.0, selection=0.25, prefill=0.75 if len(calls) != 4 else 60.0)

    times = compare(unpruned, pruned, repeats=3)
    assert calls == ["a", "b"] * 4
    assert times.ratio == 0.5  # (0.25 + 0.75) / 2; the outlier is outvoted, and the vision tower does not count
    assert times.stages == Stages(vision=3.0, selection=0.25, prefill=0.75)


def test_timed_returns_the_result_and_its_seconds():
    result, seconds = time_call(lambda: sum(range(200_000)), torch.device("cpu"))
    assert result == sum(range(200_000))
    assert seconds > 0


def test_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        time_call(lambda: 1 / 0, torch.device("cpu"))
