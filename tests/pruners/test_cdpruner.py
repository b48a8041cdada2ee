import pytest
import torch
from golden_data import cases, load, orders

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, SelectionError

QUIRK = "cdpruner_quirk_rank_deficient"
SAME_SIGNALS = [
    c for c in cases("cdpruner_*") if c not in {QUIRK, "cdpruner_llm_text_conditioning", "cdpruner_next_token_order"}
]


def tokens_of(case):
    signals = {"clip_image_embeds": case["image_embeds"], "clip_text_embeds": case["text_embeds"]}
    return VisualTokens(features=case["image_features"], signals=signals)


def literal(features, embeds, texts, k, sign=-1, alpha=None):
    """The formulas of one image, read off the paper and the code, in float64 and without a clever line.

    Only the features are normalised in the precision in which they come.
    """
    v = (features / features.norm(dim=1, keepdim=True)).double()
    e, q = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (embeds, texts))
    r = sign * torch.stack([torch.stack([a @ b for b in q]).mean() for a in e])
    r = (r - r.min() + 1e-6) / (r.max() - r.min())
    if alpha is not None:
        r = torch.exp(alpha * r)
    kernel = r[:, None] * (v @ v.T) * r[None, :]
    gain, rows, picks = kernel.diagonal().clone(), [], []
    for _ in range(k):
        j = int(gain.argmax())
        picks.append(j)
        row = (kernel[j] - sum((c[j] * c for c in rows), torch.zeros(len(r)))) / gain[j].sqrt()
        rows.append(row)
        gain = gain - row**2
        gain[picks] = -torch.inf
    return picks


@pytest.mark.parametrize("name", SAME_SIGNALS)
def test_picks_are_those_of_the_official_code(name):
    case = load(name)
    options = {}
    if "theta" in name:
        options = {"kernel_form": "exponential", "theta": float(name.rpartition("_")[2].replace("p", "."))}
    for k, order in orders(case):
        selection = create_pruner("cdpruner", conditioning="clip_text", relevance_scope="batch", **options).select(
            tokens_of(case), k
        )
        assert torch.equal(selection.order, order), (name, k)
        assert torch.equal(selection.keep, order.sort(1).values)


def test_picks_are_those_of_the_official_code_with_the_llms_own_embeddings():
    case = load("cdpruner_llm_text_conditioning")
    signals = {"prompt_embeds": case["instruction_token_embeds"][None]}
    for k, order in orders(case):
        selection = create_pruner("cdpruner", conditioning="prompt_embedding").select(
            VisualTokens(case["visual_tokens"], signals), k
        )
        assert torch.equal(selection.order, order)


def test_five_crops_give_the_official_codes_sequence():
    """LLaVA-NeXT: each crop keeps as many; the base crop comes first, then the tiles in the stitched 48 x 48 raster."""
    case = load("cdpruner_next_token_order")
    k = int(case["mask"][0].sum())
    keep = create_pruner("cdpruner", relevance_scope="batch").select(tokens_of(case), k).keep
    base = keep[0].tolist()
    stitched = []
    for crop in range(1, 5):
        for patch in keep[crop].tolist():
            row, column = divmod(patch, 24)
            stitched.append((row + 24 * ((crop - 1) // 2), column + 24 * ((crop - 1) % 2), crop * 576 + patch))
    assert base + [where for *_, where in sorted(stitched)] == case["order_in_sequence"].tolist()


def test_beyond_the_rank_the_set_is_still_full():
    case = load(QUIRK)  # 16 dimensions, 32 tokens asked for: the official code returns 28
    assert int(case["mask_T32"].sum()) == 28
    selection = create_pruner("cdpruner", relevance_scope="batch").select(tokens_of(case), 32)
    assert selection.keep.shape == (1, 32)
    official = case["order_T32"][0].tolist()
    assert selection.order[0, :12].tolist() == official[:12]


@pytest.mark.parametrize("theta", [None, 0.3])
def test_literal_transcription(theta):
    generator = torch.Generator().manual_seed(0)
    features, embeds = torch.randn(40, 16, generator=generator), torch.randn(40, 8, generator=generator)
    texts = torch.randn(2, 8, generator=generator)
    tokens = VisualTokens(features[None], {"clip_image_embeds": embeds[None], "clip_text_embeds": texts})
    options = {} if theta is None else {"kernel_form": "exponential", "theta": theta}
    alpha = None if theta is None else theta / (2 * (1 - theta))
    selection = create_pruner("cdpruner", **options).select(tokens, 12)
    assert selection.order[0].tolist() == literal(features, embeds, texts, 12, alpha=alpha)
    positive = create_pruner("cdpruner", sign=1, **options).select(tokens, 12)
    assert positive.order[0].tolist() == literal(features, embeds, texts, 12, sign=1, alpha=alpha)


def similarity(x, kernel, bandwidth):
    """(N, N) as the formulas say, in float64."""
    unit, offsets = x / x.norm(dim=1, keepdim=True), x - x.mean(0)
    apart = x[:, None] - x[None]
    return {
        "linear": lambda: x @ x.T,
        "cosine": lambda: (unit @ unit.T).fill_diagonal_(1),
        "polynomial": lambda: (((1 + unit @ unit.T) / 2) ** 2).fill_diagonal_(1),
        "rbf": lambda: (-(apart**2).sum(2) / (2 * bandwidth**2 * (offsets**2).sum(1).mean())).exp(),
        "laplacian": lambda: (-apart.abs().sum(2) / (bandwidth * offsets.abs().sum(1).mean())).exp(),
    }[kernel]()


SWEPT = [
    ("cosine", 1.0),
    ("linear", 1.0),
    ("polynomial", 1.0),
    ("laplacian", 1.0),
    *(("rbf", s) for s in (0.5, 1.0, 2.0)),
]


@pytest.mark.parametrize(("kernel", "bandwidth"), SWEPT)
@pytest.mark.parametrize("theta", [None, 0.0, 0.25, 0.5, 0.75, 0.9])
def test_every_kernel_in_every_form_is_its_formula(kernel, bandwidth, theta):
    """In float32, with features of very different lengths as LLMs have them; float64 by brute force is the judge.

    A narrow kernel is 0 in float32 between tokens far apart, so picks that are equally good may differ.
    """
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(60, 48, generator=generator)
        * torch.logspace(-1, 1, 60)[torch.randperm(60, generator=generator), None]
    )
    embeds, text = torch.randn(60, 8, generator=generator), torch.randn(1, 8, generator=generator)
    tokens = VisualTokens(x[None], {"clip_image_embeds": embeds[None], "clip_text_embeds": text})
    form = {} if theta is None else {"kernel_form": "exponential", "theta": theta}
    order = create_pruner("cdpruner", kernel=kernel, bandwidth=bandwidth, **form).select(tokens, 24).order[0].tolist()
    r = -torch.cosine_similarity(embeds.double(), text.double())
    r = (r - r.min() + 1e-6) / (r.max() - r.min())
    q = r if theta is None else (theta / (2 * (1 - theta)) * r).exp()
    matrix = q[:, None] * similarity(x.double(), kernel, bandwidth) * q
    for step, pick in enumerate(order):
        gains = {
            n: torch.logdet(matrix[[*order[:step], n]][:, [*order[:step], n]]).item()
            for n in set(range(60)) - set(order[:step])
        }
        assert gains[pick] >= max(gains.values()) - 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_are_normalised_in_the_precision_in_which_they_come(dtype):
    case = load("cdpruner_n576_d64_t32")
    features, embeds, texts = case["image_features"].to(dtype), case["image_embeds"], case["text_embeds"]
    signals = {"clip_image_embeds": embeds, "clip_text_embeds": texts}
    ours = create_pruner("cdpruner").select(VisualTokens(features, signals), 32).order[0].tolist()
    assert ours == literal(features[0], embeds[0], texts, 32)
    if dtype == torch.bfloat16:
        assert ours != literal(features[0].float(), embeds[0], texts, 32)


def test_by_hand():
    # Three directions, the second twice. Relevance (sign -1) is largest for token 0 and smallest for token 3.
    features = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 1]]])
    embeds = torch.tensor([[[-1.0, 0], [-1, 1], [-1, 1.5], [1, 0]]])
    tokens = VisualTokens(features, {"clip_image_embeds": embeds, "clip_text_embeds": torch.tensor([[1.0, 0]])})
    # Its twin being taken, token 2 adds nothing; token 3 adds something, though its relevance is almost zero.
    assert create_pruner("cdpruner").select(tokens, 3).order[0].tolist() == [0, 1, 3]


def test_scope_row_is_each_image_alone_and_batch_is_not():
    case = load("cdpruner_b2_shared_minmax")
    tokens = tokens_of(case)
    row = create_pruner("cdpruner").select(tokens, 64)
    batch = create_pruner("cdpruner", relevance_scope="batch").select(tokens, 64)
    assert not torch.equal(row.keep, batch.keep)
    for index in range(2):
        signals = {
            "clip_image_embeds": case["image_embeds"][index : index + 1],
            "clip_text_embeds": case["text_embeds"],
        }
        alone = create_pruner("cdpruner").select(VisualTokens(case["image_features"][index : index + 1], signals), 64)
        assert torch.equal(row.order[index], alone.order[0])


def test_none_is_a_plain_dpp_and_needs_no_signal():
    pruner = create_pruner("cdpruner", conditioning="none")
    assert pruner.requires == frozenset()
    features = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(1))
    texts = {"clip_image_embeds": torch.ones(1, 30, 4), "clip_text_embeds": torch.ones(1, 1, 4)}
    constant = create_pruner("cdpruner").select(VisualTokens(features, texts), 6)  # relevance without information
    assert torch.equal(pruner.select(VisualTokens(features), 6).order, constant.order)
    assert constant.order[0, 0] == 0  # all gains are equal at first, whatever rounding makes of them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cosin"}, "did you mean 'cosine'"),
        ({"conditioning": "clip"}, "Allowed: "),
        ({"relevance_scope": "rows"}, "did you mean 'row'"),
        ({"kernel_form": "exp"}, "relevance"),
        ({"theta": 1.0}, "theta"),
        ({"theta": True}, "theta"),
        ({"conditioning": {"name": "clip_text", "question": "wrong"}}, "question is 'wrong'; Allowed: other, own"),
        ({"conditioning": {"name": "clip_text", "quest": "own"}}, "no option 'quest'; did you mean 'question'"),
        ({"conditioning": {"question": "own"}}, "option 'conditioning' is None"),
        ({"bandwidth": 2.0}, "'bandwidth' is 2.0; it must be above 0, and 1 but for rbf, laplacian"),
        ({"kernel": "rbf", "bandwidth": 0.0}, "'bandwidth' is 0.0"),
        ({"sign": 0}, "sign"),
        ({"kernels": "cosine"}, "did you mean 'kernel'"),
        ({"positions": "packed"}, "repacked"),
    ],
)
def test_bad_options_are_refused_when_the_pruner_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("cdpruner", **options)


def test_missing_misshapen_and_infinite_signals_are_refused():
    features = torch.randn(1, 9, 4)
    good = {"clip_image_embeds": torch.randn(1, 9, 3), "clip_text_embeds": torch.randn(1, 1, 3)}
    with pytest.raises(SelectionError, match="clip_image_embeds"):
        create_pruner("cdpruner").select(VisualTokens(features), 3)
    for change, message in [
        ({"clip_text_embeds": torch.randn(1, 1, 5)}, "clip_text_embeds"),
        ({"clip_image_embeds": torch.randn(1, 8, 3)}, "clip_image_embeds"),
        ({"clip_image_embeds": torch.full((1, 9, 3), torch.nan)}, "finite"),
        ({"clip_text_embeds": torch.full((1, 1, 3), torch.inf)}, "finite"),
    ]:
        tokens = VisualTokens(features, {**good, **change})
        with pytest.raises(SelectionError, match=message):
            create_pruner("cdpruner").select(tokens, 3)
