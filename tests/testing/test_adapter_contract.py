"""``AdapterContract`` catches adapters that break a promise: LLaVA's is broken in one way at a time."""

import dataclasses

import pytest
import torch

from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.testing import AdapterContract
from tokenprune.testing.adapter_contract import PLANS
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import Llava


class Contract(AdapterContract):
    family = families("llava")["llava"]


class Own(AdapterContract):
    """With a model that a broken adapter may leave something on."""

    family = Llava()


def with_a_gap(positions):
    """Positions that go on where the prompt ends, one too far for all but the first tokens."""

    def broken(self, inputs):
        number = positions(self, inputs)
        return number + (number > 3)

    return broken


def reversed_parts(shortened):
    """Gives the model what is kept in the wrong order."""
    return lambda self, output, parts, kept: shortened(self, output, [part.flip(0) for part in parts], kept)


def one_layer_more(spec_from_config):
    def broken(config):
        spec = spec_from_config(config)
        return dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, layers=spec.llm.layers + 1))

    return staticmethod(broken)


def leaving_a_hook(positions):
    def broken(self, inputs):
        self.model.lm_head.register_forward_hook(lambda module, args, output: None)
        return positions(self, inputs)

    return broken


def of_the_batch(shortened):
    """Adds to each image what the batch has on average."""

    def broken(self, output, parts, kept):
        return shortened(self, output, [part + torch.cat(parts).mean(0) for part in parts], kept)

    return broken


EVERYWHERE = {"attention": "sdpa", "scope": "image", "positions": "original"}
BROKEN = [
    ("positions", with_a_gap, "test_dropping_is_masking", {**EVERYWHERE, "rows": (2, 1)}),
    (
        "positions",
        with_a_gap,
        "test_dropping_inside_is_masking_from_that_layer_on",
        {"attention": "sdpa", "layers": (2,), "rows": (1, 0, 2)},
    ),
    (
        "positions",
        with_a_gap,
        "test_dropping_inside_the_tower_is_masking_from_that_layer_on",
        {"attention": "sdpa", "positions": "original", "layers": (1,), "rows": (1, 2)},
    ),
    (
        "forward_positions",
        with_a_gap,
        "test_dropping_is_masking_in_a_forward",
        {"attention": "sdpa", "positions": "original", "side": "right"},
    ),
    ("shortened", reversed_parts, "test_keeping_everything_is_the_model_bit_for_bit", {**EVERYWHERE, "rows": (1,)}),
    ("shortened", reversed_parts, "test_dropping_is_masking", {**EVERYWHERE, "rows": (1,)}),
    ("shortened", reversed_parts, "test_dropping_from_a_chat_is_masking", {"attention": "sdpa"}),
    ("spec_from_config", one_layer_more, "test_the_spec_counts_what_runs", {}),
    ("on_offer", lambda on_offer: lambda *_: frozenset(), "test_it_says_what_it_serves", {}),
    (
        "shortened",
        of_the_batch,
        "test_a_sample_alone_is_the_sample_in_a_batch",
        {"attention": "sdpa", "scope": "image"},
    ),
    ("positions", leaving_a_hook, "test_nothing_is_left_on_the_model", {}),
]


@pytest.mark.parametrize(
    ("member", "breaking", "promise", "case"), BROKEN, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_broken_adapter_is_caught(monkeypatch, member, breaking, promise, case):
    monkeypatch.setattr(LlavaAdapter, member, breaking(getattr(LlavaAdapter, member)))
    with pytest.raises(AssertionError):
        getattr(Own() if breaking is leaving_a_hook else Contract(), promise)(**case)


def test_another_plan_than_the_given_one_is_caught(monkeypatch):
    monkeypatch.setattr("tokenprune.testing.pruners.Planned.operations", lambda self, spec: PLANS["dop"])
    with pytest.raises(AssertionError):
        Contract().test_skipping_operations_is_throwing_them_away("sdpa", PLANS["early"])


def test_what_is_broken_here_is_whole_elsewhere():
    """The same promises hold of the adapter as it is."""
    for _, _, promise, case in BROKEN:
        getattr(Contract(), promise)(**case)
