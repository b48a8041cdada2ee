import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.errors import SelectionError
from tokenprune.types import VisualTokens

G = torch.Generator().manual_seed(0)
FEATURES, EMBEDS, TEXTS = (
    torch.randn(2, 7, 6, generator=G),
    torch.randn(2, 7, 5, generator=G),
    torch.randn(2, 3, 5, generator=G),
)
PROMPT, MASK = torch.randn(2, 4, 6, generator=G), torch.tensor([[True] * 4, [True, True, False, False]])
TOKENS = VisualTokens(
    FEATURES,
    {"clip_image_embeds": EMBEDS, "clip_text_embeds": TEXTS, "prompt_embeds": PROMPT, "prompt_mask": MASK},
)


def source(name):
    return CONDITIONINGS.get(name)()


def test_signs_and_needs():
    table = {name: (source(name).sign, source(name).text_tower) for name in CONDITIONINGS.names()}
    assert table == {
        "none": (1, None),
        "clip_text": (-1, "clip"),
        "open_clip_text": (-1, "open_clip"),
        "prompt_embedding": (1, None),
        "prompt_embedding_per_token": (1, None),
    }


@pytest.mark.parametrize("name", ["clip_text", "open_clip_text"])
def test_clip_text_is_the_mean_cosine_to_the_segments(name):
    expected = torch.stack([cosine_similarity(EMBEDS, TEXTS[:, m : m + 1], dim=-1) for m in range(3)]).mean(0)
    assert torch.allclose(source(name).relevance(TOKENS, "row"), expected, atol=1e-6)
    everybody = torch.stack([cosine_similarity(EMBEDS, t.view(1, 1, 5), dim=-1) for t in TEXTS.flatten(0, 1)]).mean(0)
    assert torch.allclose(source(name).relevance(TOKENS, "batch"), everybody, atol=1e-6)


def test_prompt_embedding_is_the_cosine_to_the_mean_of_real_tokens():
    mean = torch.stack([PROMPT[0].mean(0), PROMPT[1, :2].mean(0)])[:, None]
    expected = cosine_similarity(FEATURES, mean, dim=-1)
    assert torch.allclose(source("prompt_embedding").relevance(TOKENS, "row"), expected, atol=1e-6)


def test_per_token_is_the_mean_of_the_cosines():
    cosines = normalize(FEATURES, dim=-1) @ normalize(PROMPT, dim=-1).mT
    expected = torch.stack([cosines[0].mean(1), cosines[1, :, :2].mean(1)])
    assert torch.allclose(source("prompt_embedding_per_token").relevance(TOKENS, "row"), expected, atol=1e-6)


def test_none_says_nothing():
    assert (source("none").relevance(TOKENS, "row") == 1).all()


def test_an_empty_prompt_is_refused():
    signals = {"prompt_embeds": PROMPT, "prompt_mask": torch.zeros(2, 4, dtype=torch.bool)}
    with pytest.raises(SelectionError, match="without a token"):
        source("prompt_embedding").relevance(VisualTokens(FEATURES, signals), "row")
