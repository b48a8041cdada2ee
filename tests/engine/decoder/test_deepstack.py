"""What is added behind a layer that sees less than the prompt; whole models are in test_qwen_vl and test_qwen3_vl."""

import pytest
import torch

from tokenprune.engine.decoder.alive import Alive
from tokenprune.engine.decoder.deepstack import LEVELS, PLACES, DeepStack

VISUAL = torch.tensor([[False, True, True, False], [True, True, True, False]])
FEATURES = [torch.arange(10.0).view(5, 2) + 100 * level for level in (1, 2, 3)]
ARGUMENTS = {PLACES: VISUAL, LEVELS: FEATURES}


def alive(stay, appended=0):
    number = (VISUAL.long().cumsum(1) - 1).masked_fill(~VISUAL, -1)
    prompt = Alive.prompt(torch.ones_like(VISUAL), VISUAL, number)
    return prompt.keep(torch.tensor(stay), torch.ones(2, appended, dtype=torch.bool), repack=False)[0]


def test_each_token_gets_its_own():
    tokens = alive([[True, False, True, True], [True, False, True, True]])
    stack = DeepStack.of(ARGUMENTS, first=1)
    added = stack.add(2, torch.zeros(2, 3, 2), tokens)
    assert added[0].tolist() == [[0, 0], [202, 203], [0, 0]]
    assert added[1].tolist() == [[204, 205], [208, 209], [0, 0]]
    assert stack.add(3, torch.ones(2, 3, 2), tokens)[0].tolist() == [[1, 1], [303, 304], [1, 1]]


@pytest.mark.parametrize("index", [0, 1, 4, 9])
def test_nothing_is_added_before_and_after_these_layers(index):
    hidden = torch.zeros(2, 4, 2)
    assert DeepStack.of(ARGUMENTS, first=1).add(index, hidden, alive([[True] * 4] * 2)) is hidden


def test_appended_tokens_get_nothing():
    tokens = alive([[True, False, True, True], [True, False, True, True]], appended=1)
    added = DeepStack.of(ARGUMENTS, first=0).add(1, torch.zeros(2, 4, 2), tokens)
    assert added[0].tolist() == [[0, 0], [102, 103], [0, 0], [0, 0]]
    assert added[1].tolist() == [[104, 105], [108, 109], [0, 0], [0, 0]]


def test_what_the_llm_adds_itself():
    assert DeepStack.of(ARGUMENTS, first=1).left == {LEVELS: FEATURES[:1]}
    assert DeepStack.of(ARGUMENTS, first=3) is None
    assert DeepStack.of({}, first=0) is None
