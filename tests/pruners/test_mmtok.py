import pytest
import torch
from golden_data import load

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.functional.coverage import max_coverage

MMTOK = create_pruner("mmtok")


def tokens_of(case):
    signals = {"prompt_embeds": case["text_embeds"][None], "vision_hidden": case["vision_tokens_clip"]}
    return VisualTokens(case["vision_tokens"], signals)


def test_picks_are_those_of_the_official_code():
    case = load("mmtok_t64")
    chosen = MMTOK.select(tokens_of(case), 64)
    assert torch.equal(chosen.order, case["order"].long())
    assert torch.equal(chosen.keep, case["kept"].long())


def test_among_what_is_no_padding_picks_are_those_of_the_official_code():
    """Padded patches may not be picked, but they are still covered."""
    case = load("mmtok_t128_padded")
    allowed = torch.ones(1, 576, dtype=torch.bool)
    allowed[:, case["excluded"].long()] = False
    assert torch.equal(max_coverage(MMTOK.cover(tokens_of(case)), 128, allowed), case["order"].long())


@pytest.mark.parametrize("options", [{}, {"alpha": 2.0}, {"text_temperature": 0.5, "image_temperature": 1.0}])
def test_literal_transcription(options):
    """Of two prompts of unequal lengths, by entries in float64."""
    generator = torch.Generator().manual_seed(0)
    x, states = torch.randn(2, 20, 6, generator=generator), torch.randn(2, 20, 5, generator=generator)
    words, mask = torch.randn(2, 4, 6, generator=generator), torch.tensor([[True] * 4, [True, True, False, False]])
    tokens = VisualTokens(x, {"prompt_embeds": words, "prompt_mask": mask, "vision_hidden": states})
    pruner = create_pruner("mmtok", **options)
    found, shares = pruner.select(tokens, 8).order, pruner.cover(tokens)
    assert shares[1, 2:4].eq(0).all()  # padding
    how = {"alpha": 0.5, "text_temperature": 0.02, "image_temperature": 0.2} | options
    for row in range(2):
        asked = words[row, mask[row]].double()
        lines = [cosines(w, x[row].double(), how["text_temperature"]) / len(asked) for w in asked]
        lines += [
            how["alpha"] / 20 * cosines(s, states[row].double(), how["image_temperature"]) for s in states[row].double()
        ]
        torch.testing.assert_close(
            shares[row, torch.cat([mask[row], torch.ones(20).bool()])], torch.stack(lines).float()
        )
        cover, best, picks = torch.stack(lines), torch.zeros(len(lines)).double(), []
        for _ in range(8):
            gains = [(line - best).clamp(min=0).sum() if j not in picks else -1 for j, line in enumerate(cover.T)]
            picks.append(int(torch.tensor(gains).argmax()))
            best = best.maximum(cover[:, picks[-1]])
        assert found[row].tolist() == picks


def cosines(one, others, temperature):
    return (torch.cosine_similarity(one[None], others) / temperature).softmax(0)


def test_by_hand():
    # The picture is three tokens of one kind and one of another; the question is about a third kind, that of token 2.
    states = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [0, 1]]])
    x = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]])
    tokens = VisualTokens(x, {"prompt_embeds": torch.tensor([[[0.0, 0, 5]]]), "vision_hidden": states})
    assert MMTOK.select(tokens, 2).order.tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha.*at least 0"),
        ({"text_temperature": 0.0}, "text_temperature.*above 0"),
        ({"image_temperature": -1.0}, "image_temperature.*above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("mmtok", **options)
