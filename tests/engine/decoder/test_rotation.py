"""Cosines and sines of positions that the forward did not have."""

import pytest
import torch
from torch import nn

from tokenprune.core.errors import ModelError
from tokenprune.engine.decoder.rotation import Rotations


class Rotary(nn.Module):
    """One frequency for each kind of layer, as Gemma 3 has them."""

    def forward(self, x, position_ids, layer_type="global"):
        angle = position_ids[..., None] * {"global": 0.5, "local": 2.0}[layer_type] + x.shape[-1]
        return angle.cos(), angle.sin()


def noted(module, *calls):
    """The forward's calls, and what each gave."""
    rotations, x, outputs = Rotations(module), torch.zeros(1, 4, 3), []
    for positions, kind in calls:
        arguments = {"x": x, "position_ids": positions, "layer_type": kind}
        outputs.append(module(**arguments))
        rotations.note(arguments, outputs[-1])
    return rotations, outputs


def test_closed_gaps_are_the_rotation_of_the_closed_positions():
    module, positions = Rotary(), torch.tensor([[0, 2, 5, 6], [0, 1, 4, 9]])
    rotations, (given,) = noted(module, (positions, "global"))
    closed = torch.tensor([[0, 1, 2], [0, 1, 2]])
    cos, sin = rotations.at(closed, given)
    angle = closed[..., None] * 0.5 + 3
    assert torch.equal(cos, angle.cos())
    assert torch.equal(sin, angle.sin())


def test_what_a_layer_was_given_tells_which_call_to_repeat():
    positions = torch.arange(4)[None]
    rotations, (wide, narrow) = noted(Rotary(), (positions, "global"), (positions, "local"))
    at = torch.tensor([[7]])
    assert torch.equal(rotations.at(at, wide)[0], (at[..., None] * 0.5 + 3).cos())
    assert torch.equal(rotations.at(at, narrow)[0], (at[..., None] * 2.0 + 3).cos())
    copied = tuple(x.clone() for x in wide)  # on another device, say: the last call stands for it
    assert torch.equal(rotations.at(at, copied)[0], (at[..., None] * 2.0 + 3).cos())


def test_hooks_do_not_see_it():
    module, seen = Rotary(), []
    rotations, (given,) = noted(module, (torch.arange(4)[None], "global"))
    module.register_forward_hook(lambda *args: seen.append(args))
    rotations.at(torch.tensor([[1]]), given)
    assert seen == []


def test_positions_are_those_of_the_forward():
    positions = torch.arange(3, 7)[None]
    rotations, _ = noted(Rotary(), (positions, "global"))
    assert torch.equal(rotations.positions, positions)
    several = Rotations(Rotary())
    several.note({"position_ids": positions.expand(3, 1, 4)}, (positions, positions))
    with pytest.raises(ModelError, match="several axes"):
        _ = several.positions
