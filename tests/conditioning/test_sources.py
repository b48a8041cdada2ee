import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.core.errors import SelectionError
from tokenprune.core.signals import Evidence, OneOf, PairedImage, PairedText, PromptEmbeds, PromptMask, TowerAttention
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import create_pruner

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
    table = {name: (source(name).sign, source(name).requires) for name in CONDITIONINGS.names()}
    assert table == {
        "none": (1, set()),
        "auto": (1, {OneOf(PairedImage("clip"), PromptEmbeds()), OneOf(PairedText("clip"), PromptMask())}),
        "clip_text": (-1, {PairedImage("clip"), PairedText("clip")}),
        "open_clip_text": (-1, {PairedImage("open_clip"), PairedText("open_clip")}),
        "prompt_embedding": (1, {PromptEmbeds(), PromptMask()}),
        "prompt_embedding_per_token": (1, {PromptEmbeds(), PromptMask()}),
        "cls_attention": (1, {TowerAttention("cls")}),
        "received_attention": (1, {TowerAttention("patches")}),
        "oracle": (1, {Evidence()}),
    }


@pytest.mark.parametrize("name", ["clip_text", "open_clip_text", "prompt_embedding", "prompt_embedding_per_token"])
def test_another_question_is_another_signal_of_the_prompt(name):
    """What is of the image stays."""
    own, other = source(name).requires, CONDITIONINGS.get(name)(question="other").requires
    assert {signal.plain for signal in other} == {signal.plain for signal in own}
    assert {getattr(signal, "question", None) for signal in other - own} == {"other"}
    assert not any(signal.of_prompts for signal in own & other)


def test_auto_takes_the_text_tower_and_else_the_prompt():
    """Each with its own sign."""
    alone = VisualTokens(FEATURES, {"prompt_embeds": PROMPT, "prompt_mask": MASK})
    for tokens, name in ((TOKENS, "clip_text"), (alone, "prompt_embedding")):
        assert torch.equal(source("auto").relevance(tokens, "row"), source(name).relevance(TOKENS, "row"))
        assert source("auto").sign_for(tokens) == source(name).sign


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


@pytest.mark.parametrize("name", ["cls_attention", "received_attention"])
def test_attention_is_the_mean_over_heads_whatever_the_prompt(name):
    attention = torch.rand(2, 4, 7, generator=G)
    tokens = VisualTokens(FEATURES, {name: attention.bfloat16(), "prompt_embeds": PROMPT})
    expected = sum(attention.bfloat16().float()[:, head] for head in range(4)) / 4
    for scope in ("row", "batch"):
        found = source(name).relevance(tokens, scope)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
    assert {signal.plain for signal in source(name).requires} == {name}
    for wrong in (attention[:, :, :6], attention[:, 0], attention[:, :0]):
        with pytest.raises(SelectionError, match=rf"'{name}' must be \(B, H, 7\), got"):
            source(name).relevance(VisualTokens(FEATURES, {name: wrong}), "row")
    with pytest.raises(SelectionError, match=rf"'{name}' is needed but was not given"):
        source(name).relevance(VisualTokens(FEATURES), "row")


def test_cdpruner_keeps_what_is_attended_to_where_tokens_are_all_unlike():
    """With an identity for the kernel, only relevance counts."""
    attention = torch.rand(1, 3, 7, generator=G)
    tokens = VisualTokens(torch.eye(7)[None], {"received_attention": attention})
    kept = create_pruner("cdpruner", conditioning="received_attention").select(tokens, 3).keep[0]
    assert kept.tolist() == attention.mean(1)[0].topk(3).indices.sort().values.tolist()


def test_the_oracle_says_what_it_is_told():
    evidence = torch.rand(2, 7, generator=G).round()
    tokens = VisualTokens(FEATURES, {"evidence": evidence.bfloat16()})
    assert torch.equal(source("oracle").relevance(tokens, "row"), evidence)
    with pytest.raises(SelectionError, match=r"'evidence' must be \(B, 7\), got \(2, 6\)"):
        source("oracle").relevance(VisualTokens(FEATURES, {"evidence": evidence[:, :6]}), "row")
    with pytest.raises(SelectionError, match="'evidence' is needed but was not given"):
        source("oracle").relevance(VisualTokens(FEATURES), "row")


def test_none_says_nothing():
    assert (source("none").relevance(TOKENS, "row") == 1).all()


def test_an_empty_prompt_is_refused():
    signals = {"prompt_embeds": PROMPT, "prompt_mask": torch.zeros(2, 4, dtype=torch.bool)}
    with pytest.raises(SelectionError, match="without a token"):
        source("prompt_embedding").relevance(VisualTokens(FEATURES, signals), "row")
