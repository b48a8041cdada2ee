"""Attention probabilities by hand where no mask says what is hidden, and layers that are read while others run them."""

import threading

import pytest
import torch

from tokenprune.engine.decoder.tap import Attended, attended
from tokenprune.testing.families.llava import shared_llava


def probabilities(scores, *, mask=None, window=None, valid=None, softcap=None):
    """Of three queries over three keys whose products are ``scores``."""
    query, key = torch.eye(3)[None, None], torch.tensor(scores).T[None, None]
    what = Attended(query, key, 1.0, mask, softcap, window)
    valid = torch.ones(1, 3, dtype=torch.bool) if valid is None else valid
    return what.probabilities(torch.arange(3)[None], valid, torch.tensor([0]))[0, 0]


SCORES = [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 0.0, 1.0]]


def test_attention_is_causal():
    found = probabilities(SCORES)
    assert found[0].tolist() == [1, 0, 0]
    torch.testing.assert_close(found[1, :2], torch.tensor([0.0, 1.0]).softmax(0))
    torch.testing.assert_close(found[2], torch.tensor([2.0, 0.0, 1.0]).softmax(0))
    assert found[1, 2] == 0


@pytest.mark.parametrize("mask", [None, torch.tensor([[False, True, True]])], ids=["none", "padding"])
def test_padding_is_hidden_without_a_square_mask(mask):
    """As flash attention is given it."""
    found = probabilities(SCORES, mask=mask, valid=torch.tensor([[False, True, True]]))
    assert found[1].tolist() == [0, 1, 0]
    torch.testing.assert_close(found[2, 1:], torch.tensor([0.0, 1.0]).softmax(0))
    assert found[2, 0] == 0


def test_a_window_without_a_mask():
    found = probabilities(SCORES, window=2)
    torch.testing.assert_close(found[2, 1:], torch.tensor([0.0, 1.0]).softmax(0))
    assert found[2, 0] == 0
    assert probabilities(SCORES, window=1).tolist() == torch.eye(3).tolist()


def test_a_mask_says_all():
    mask = torch.tensor([[[[True, False, True], [True, True, True], [False, True, False]]]])
    found = probabilities(SCORES, mask=mask, window=1)
    torch.testing.assert_close(found[0, [0, 2]], torch.tensor([1.0, 3.0]).softmax(0))
    torch.testing.assert_close(found[1], torch.tensor([0.0, 1.0, 0.0]).softmax(0))
    assert found[2].tolist() == [0, 1, 0]


def test_other_threads_run_a_layer_that_is_being_read():
    """In the middle of a reading another thread runs the same module, which is neither stopped nor shortened there."""
    model, _ = shared_llava("sdpa")
    module = model.get_decoder().layers[1].self_attn
    hidden = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    rotation = model.get_decoder().rotary_emb(hidden, torch.arange(6)[None])
    arguments = {"hidden_states": hidden, "position_embeddings": rotation, "attention_mask": None}
    main, outputs = threading.get_ident(), []

    def other():
        with torch.no_grad():
            outputs.append(module(**arguments)[0])

    def meanwhile(projection, args):
        if threading.get_ident() == main:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    with torch.no_grad():
        plain = module(**arguments)[0]
        wanted = attended(module, hidden, rotation, None, torch.tensor([5, 3]))
        handle = module.k_proj.register_forward_pre_hook(meanwhile)
        found = attended(module, hidden, rotation, None, torch.tensor([5, 3]))
        handle.remove()
    assert len(outputs) == 1
    assert torch.equal(outputs[0], plain)
    assert torch.equal(found.query, wanted.query)
    assert torch.equal(found.key, wanted.key)
