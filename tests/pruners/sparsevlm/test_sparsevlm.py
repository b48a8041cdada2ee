import dataclasses
import math

import pytest
import torch
from golden_data import load

from tokenprune import Budget, VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.signals import RopeSimilarity
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import decoder

PUBLISHED = [
    ("v1", 192, (300, 200, 110), (309, 204, 113), 206.5),
    ("v1", 128, (303, 110, 36), (312, 117, 39), 145.4),
    ("v1", 96, (238, 48, 26), (249, 55, 27), 114.1),
    ("v1", 64, (66, 30, 17), (82, 32, 18), 82.3),
    ("plus", 192, (300, 200, 118), (300, 200, 118), None),
    ("plus", 128, (238, 108, 60), (238, 108, 60), None),
    ("plus", 96, (246, 54, 28), (246, 54, 28), None),
    ("plus", 64, (66, 34, 20), (66, 34, 20), None),
]
PREFIX, IMAGE = 35, 576  # of the official code's prompts


def spec(layers=32):
    llm = TransformerSpec(layers=layers, width=64, mlp_width=128, heads=4, kv_heads=4, head_dim=16, mlp_matrices=3)
    return ModelSpec(llm=llm, vocabulary=100, visual_tokens=576)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch=2, n=40, text=6, heads=4, size=8, seed=0, **kwargs):
    """A stage at which 10 of the visual tokens that entered the LLM are gone."""
    signals = {
        "image_embeds": draw(batch, n + 10, size, seed=seed),
        "text_embeds": draw(batch, text, size, seed=seed + 1),
        "text_mask": torch.ones(batch, text, dtype=torch.bool),
        "text_attention": draw(batch, heads, text, n, seed=seed + 2).softmax(-1),
        "rope_similarity": 1 + draw(batch, text, n, seed=seed + 3).abs(),
    }
    return VisualTokens(draw(batch, n, size, seed=seed + 4), signals, **kwargs)


def changed(given, **signals):
    return VisualTokens(given.features, {**given.signals, **signals}, row_ids=given.row_ids)


# The official code's outputs


def walk(case, pruner, counts):
    """The stages one after another, as layers that hand on what they get; yields what each selects."""
    embeds = case["inputs_embeds"]
    alive = embeds[:, PREFIX : PREFIX + IMAGE]
    text = embeds[:, PREFIX + IMAGE :]
    for layer, k in counts.items():
        signals = {
            "image_embeds": embeds[:, PREFIX : PREFIX + IMAGE],
            "text_embeds": text,
            "text_mask": torch.ones(text.shape[:2], dtype=torch.bool),
            "text_attention": case[f"attn_text_to_image_L{layer}"],
        }
        selection = pruner.select(VisualTokens(alive, signals), k or alive.shape[1])
        yield layer, alive, selection
        alive = selection.merged


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("sparsevlm_stub_192", {"preset": 192}, {2: 300, 6: 200, 15: 110}),
        (
            "sparsevlm_rank_pope_9_6",
            {"count": "rank", "rank_scale": 9.0, "rank_bias": 6.0, "layers": (2, 6, 15, 19)},
            dict.fromkeys((2, 6, 15, 19)),
        ),
    ],
)
def test_stages_are_those_of_the_official_code(name, options, counts):
    case, pruner = load(name), create_pruner("sparsevlm", **options)
    for layer, alive, selection in walk(case, pruner, counts):
        relation = case[f"relation_L{layer}"]
        torch.testing.assert_close(selection.scores[0], relation, rtol=1e-5, atol=1e-8)
        assert torch.equal(selection.keep[0], case[f"kept_L{layer}"].long())
        k = selection.keep.shape[1]
        assert torch.equal(selection.merged[:, :k], alive[:, selection.keep[0]])
        torch.testing.assert_close(selection.merged[:, k:], case[f"merge_out_L{layer}"], rtol=1e-5, atol=1e-5)
        assert selection.merged.shape[1] - k == pruner.appended(alive.shape[1] - k)


def test_raters_are_those_of_the_official_code():
    case = load("sparsevlm_stub_192")
    raters = case["rater_idx"].long()
    (_, _, selection), *_ = walk(case, create_pruner("sparsevlm"), {2: 300})
    by_row = case["attn_text_to_image_L2"][0].mean(0)
    torch.testing.assert_close(selection.scores[0], by_row[raters].mean(0))
    others = by_row[[row for row in range(40) if row not in raters]].mean(0)
    assert (selection.scores[0] - others).abs().max() > 1e-3


# A literal transcription


def literal(given, row, k, plus=False, heads=14, recycle=True):
    """Kept tokens and merged ones of one row, from the formulas, in float64, one number after another."""
    image, text, mask, attention, rope = (
        given.signals[name][row]
        for name in ("image_embeds", "text_embeds", "text_mask", "text_attention", "rope_similarity")
    )
    rows = [t for t in range(len(mask)) if mask[t]]
    weight = dict.fromkeys(rows, 0.0)
    for v in image.double():
        e = {t: math.exp(float(v @ text[t].double())) for t in rows}
        for t in rows:
            weight[t] += e[t] / sum(e.values()) / len(image)
    raters = [t for t in rows if weight[t] > sum(weight.values()) / len(rows)] or rows
    a = attention.double()
    if plus:
        a = torch.stack([head / rope.double() for head in a])
        mass = [sum(float(head[t].sum()) for t in raters) for head in a]
        a = a[sorted(range(len(a)), key=lambda h: -mass[h])[:heads]]
    relation = [sum(float(head[t, v]) for head in a for t in raters) for v in range(a.shape[2])]
    ranked = sorted(range(len(relation)), key=lambda v: -relation[v])
    keep, dropped = sorted(ranked[:k]), ranked[k:]
    if not recycle or not dropped:
        return keep, None
    x = given.features[row, dropped[: int(0.3 * len(dropped)) + 1]].double()
    number = int(len(x) / 10) + 1
    distance = [[float((p - q).norm()) / math.sqrt(x.shape[1]) for q in x] for p in x]
    density = [math.exp(-sum(d * d for d in sorted(ds)[:number]) / number) for ds in distance]
    score = []
    for i, ds in enumerate(distance):
        denser = [d for j, d in enumerate(ds) if (-density[j], j) < (-density[i], i)]
        score.append(density[i] * min(denser, default=max(map(max, distance))))
    centers = sorted(range(len(x)), key=lambda i: -score[i])[:number]
    groups = {c: [] for c in centers}
    for i, ds in enumerate(distance):
        groups[i if i in groups else min(centers, key=lambda c: ds[c])].append(x[i])
    return keep, torch.stack([sum(group) / len(group) for group in groups.values()])


@pytest.mark.parametrize("k", [1, 11, 38, 39])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recycle": False},
        {"version": "plus", "heads": 2},
        {"version": "plus", "heads": 3, "recycle": True},
        {"version": "plus"},
    ],
)
def test_literal_transcription(options, k):
    given, pruner = tokens(n=60 if k == 11 else 40), create_pruner("sparsevlm", **options)
    given.signals["text_mask"][0, :2] = False
    selection = pruner.select(given, k)
    for row in range(2):
        plus = options.get("version") == "plus"
        keep, means = literal(given, row, k, plus, options.get("heads", 14), options.get("recycle", not plus))
        assert selection.keep[row].tolist() == keep
        if means is None:
            assert selection.merged is None
        else:
            assert torch.equal(selection.merged[row, :k], given.features[row, keep])
            torch.testing.assert_close(selection.merged[row, k:].double(), means, rtol=1e-5, atol=1e-6)


def test_plus_by_hand():
    # One rater, two heads. Head 0 has more mass, and prefers token 0; divided, head 1 has more, and prefers token 2.
    given = tokens(batch=1, n=3, text=1, heads=2)
    attention = torch.tensor([[[[0.5, 0.3, 0.0]], [[0.1, 0.1, 0.5]]]])
    rope = torch.tensor([[[2.0, 2.0, 0.5]]])
    given = changed(given, text_attention=attention, rope_similarity=rope)
    plus = create_pruner("sparsevlm", version="plus", heads=1).select(given, 1)
    assert plus.keep.tolist() == [[2]]
    torch.testing.assert_close(plus.scores, torch.tensor([[0.05, 0.05, 1.0]]))
    both = create_pruner("sparsevlm", version="plus").select(given, 1)
    torch.testing.assert_close(both.scores, torch.tensor([[0.15, 0.1, 0.5]]))
    v1 = create_pruner("sparsevlm", recycle=False).select(given, 1)
    assert v1.keep.tolist() == [[0]]


# Schedules


@pytest.mark.parametrize(("version", "preset", "counts", "alive", "mean"), PUBLISHED)
def test_presets_are_the_published_counts(version, preset, counts, alive, mean):
    pruner = create_pruner("sparsevlm", version=version, preset=preset)
    assert pruner.schedule(spec(), pruner.budget, 576) == counts
    assert pruner.alive(spec(), counts, 576) == alive
    real = pruner.plan(spec(), alive, 576).mean_tokens
    if mean:
        assert real == pytest.approx(mean, abs=0.06)
    free = create_pruner("sparsevlm", version=version)
    assert free.budget is None
    assert free.schedule(spec(), Budget(average_tokens=real), 576) == counts
    assert pruner.schedule(spec(), pruner.budget, 2880) == tuple(5 * count for count in counts)


def test_stages_are_the_outputs_of_the_layers():
    assert create_pruner("sparsevlm").stages(spec()) == (decoder(3), decoder(7), decoder(16))
    assert create_pruner("sparsevlm").stages(spec(28)) == (decoder(3), decoder(6), decoder(14))
    assert create_pruner("sparsevlm", layers=(0, 2, 3)).stages(spec()) == (decoder(1), decoder(3), decoder(4))
    for layers in range(4, 65):
        assert len(create_pruner("sparsevlm").steps(spec(layers))) == 3
    with pytest.raises(ConfigError, match="the LLM has 3; give option 'layers'"):
        create_pruner("sparsevlm").stages(spec(3))
    with pytest.raises(ConfigError, match="4 layers"):
        create_pruner("sparsevlm", layers=(0, 1, 3)).steps(spec(4))


@pytest.mark.parametrize("layers", [4, 5, 28, 32, 80])
@pytest.mark.parametrize("total", [1, 10, 144, 576])
@pytest.mark.parametrize("version", ["v1", "plus"])
def test_tokens_of_a_layer_grow_with_the_budget(version, total, layers):
    pruner, before = create_pruner("sparsevlm", version=version), -1.0
    for keep in range(total + 1):
        counts = pruner.counts(spec(layers), keep, total)
        assert counts[-1] == keep
        assert total >= counts[0] >= counts[1] >= counts[2]
        mean = pruner.plan(spec(layers), pruner.alive(spec(layers), counts, total), total).mean_tokens
        assert mean >= before
        before = mean
    assert pruner.counts(spec(layers), 0, total) == (0, 0, 0)
    assert counts == (total,) * 3
    assert mean == total


def test_an_empty_image_has_nothing_to_keep():
    assert create_pruner("sparsevlm").counts(spec(), 0, 0) == (0, 0, 0)


# Selection


def test_padding_of_the_text_does_not_matter():
    given = tokens()
    ahead = {"text_mask": torch.zeros(2, 3, dtype=torch.bool), "text_embeds": draw(2, 3, 8, seed=9)}
    ahead |= {"text_attention": torch.full((2, 4, 3, 40), torch.nan), "rope_similarity": torch.zeros(2, 3, 40)}
    axis = {"text_attention": 2}
    padded = changed(given, **{k: torch.cat([v, given.signals[k]], axis.get(k, 1)) for k, v in ahead.items()})
    for options in ({}, {"version": "plus", "heads": 2}):
        pruner = create_pruner("sparsevlm", **options)
        assert torch.equal(pruner.select(padded, 9).keep, pruner.select(given, 9).keep)
        assert pruner.select(padded, 9).scores.isfinite().all()


def test_one_text_token_rates_alone():
    given = tokens(text=1)
    attention = given.signals["text_attention"].mean(1)[:, 0]
    best = attention.argsort(dim=1, descending=True)[:, :9].sort(1).values
    assert torch.equal(create_pruner("sparsevlm").select(given, 9).keep, best)


def test_keeping_all_changes_nothing():
    selection = create_pruner("sparsevlm").select(tokens(), 40)
    assert selection.keep.tolist() == [list(range(40))] * 2
    assert selection.merged is None


def test_ties_go_to_the_lowest_index():
    given = changed(tokens(), text_attention=torch.full((2, 4, 6, 40), 1 / 40))
    assert create_pruner("sparsevlm").select(given, 5).keep.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_merged_tokens_of_a_row_are_those_of_the_row_alone():
    given, pruner = tokens(batch=3, row_ids=torch.tensor([4, 5, 6])), create_pruner("sparsevlm", noise=1e-3)
    whole = pruner.select(given, 7)
    for row in range(3):
        cut = slice(row, row + 1)
        alone = VisualTokens(
            given.features[cut], {k: v[cut] for k, v in given.signals.items()}, row_ids=given.row_ids[cut]
        )
        torch.testing.assert_close(pruner.select(alone, 7).merged, whole.merged[cut])


def test_noise_is_seeded():
    given = tokens(row_ids=torch.tensor([4, 5]), n=120)

    def merged(**options):
        return create_pruner("sparsevlm", **options).select(given, 10).merged

    assert torch.equal(merged(), merged(seed=3))
    assert torch.equal(merged(noise=100.0), merged(noise=100.0))
    assert not torch.equal(merged(noise=100.0), merged())
    assert not torch.equal(merged(noise=100.0), merged(noise=100.0, seed=1))


def test_noise_is_of_the_row_id():
    given = tokens(batch=1, n=120)
    signals = {name: value.expand(2, *value.shape[1:]) for name, value in given.signals.items()}
    twins = VisualTokens(given.features.expand(2, -1, -1), signals, row_ids=torch.tensor([4, 5]))
    for noise in (0.0, 100.0):
        first, second = create_pruner("sparsevlm", noise=noise).select(twins, 10).merged
        assert torch.equal(first, second) == (noise == 0)


def test_padding_is_not_merged():
    given = tokens(batch=1, n=40)
    valid = torch.arange(40)[None] < 30
    signals = {k: v[..., :30] if k in ("text_attention", "rope_similarity") else v for k, v in given.signals.items()}
    padded = create_pruner("sparsevlm").select(VisualTokens(given.features, given.signals, valid=valid), 28)
    alone = create_pruner("sparsevlm").select(VisualTokens(given.features[:, :30], signals), 28)
    assert torch.equal(padded.keep, alone.keep)
    assert torch.equal(padded.merged, alone.merged)


def test_merged_tokens_have_the_features_dtype():
    given = tokens()
    half = VisualTokens(given.features.bfloat16(), given.signals)
    assert create_pruner("sparsevlm").select(half, 7).merged.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["image_embeds", "text_embeds", "text_mask", "text_attention", "rope_similarity"])
def test_needs_its_signals(name):
    given = tokens()
    fewer = VisualTokens(given.features, {k: v for k, v in given.signals.items() if k != name})
    pruner = create_pruner("sparsevlm", version="plus")
    assert name in {signal.plain for signal in pruner.requires}
    with pytest.raises(SelectionError, match=name):
        pruner.select(fewer, 5)
    assert RopeSimilarity() not in create_pruner("sparsevlm").requires


# Rank


def test_by_rank_a_row_has_a_number_of_its_own():
    pruner = create_pruner("sparsevlm", count="rank", rank_scale=2.0, rank_bias=1.0)
    assert pruner.adaptive
    assert not create_pruner("sparsevlm").adaptive
    assert pruner.schedule(spec(), pruner.budget, 576) == (576, 576, 576)
    one = tokens(batch=1, text=12)
    text, image = one.signals["text_embeds"][0].double(), one.signals["image_embeds"][0].double()
    weight = (image @ text.T).softmax(1).mean(0)
    raters = int((weight > 1 / 12).sum())  # random rows: of full rank
    assert 1 < raters < 12
    assert pruner.select(one, 40).keep.shape == (1, 2 * raters + 1)
    assert pruner.select(one, 3).keep.shape == (1, 3)  # the budget is the most
    with pytest.raises(SelectionError, match="one at a time"):
        pruner.select(tokens(batch=2), 40)


def test_by_rank_all_stay_if_it_is_full():
    given = tokens(batch=1, n=2)
    given = changed(given, text_embeds=given.signals["text_embeds"][:, :1].expand(-1, 6, -1))  # all rate
    selection = create_pruner("sparsevlm", count="rank", rank_scale=0.1).select(given, 2)
    assert selection.keep.tolist() == [[0, 1]]
    assert selection.merged is None


# Options


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({}, "repacked"),
        ({"version": "plus"}, "original"),
        ({"version": "plus", "positions": "repacked"}, "repacked"),
        ({"version": "plus", "recycle": True}, "repacked"),
        ({"recycle": False}, "repacked"),
        ({"recycle": False, "positions": "original"}, "original"),
    ],
)
def test_positions_follow_the_version(options, positions):
    pruner = create_pruner("sparsevlm", **options)
    assert {step.positions for step in pruner.steps(spec())} == {positions}
    assert create_pruner("sparsevlm", **dataclasses.asdict(pruner)) == pruner


def test_where_gaps_cannot_be_closed_nothing_is_recycled_and_positions_stay():
    several = dataclasses.replace(spec(), position_axes=3)
    (first, *_) = create_pruner("sparsevlm").steps(several)
    assert first.positions == "original"
    assert first.selector.appended(30) == 0
    (asked, *_) = create_pruner("sparsevlm", recycle=True).steps(several)
    assert asked.selector.appended(30) > 0
    (repacked, *_) = create_pruner("sparsevlm", positions="repacked").steps(several)
    assert (repacked.positions, repacked.selector.appended(30) > 0) == ("repacked", True)


@pytest.mark.parametrize("version", ["v1", "plus"])
def test_only_what_recycles_appends(version):
    for recycle in (None, True, False):
        pruner = create_pruner("sparsevlm", version=version, recycle=recycle)
        expected = 9 if recycle or (recycle is None and version == "v1") else 0
        assert pruner.appended(276) == expected
        assert pruner.appended(0) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "v2"}, "version"),
        ({"count": "tables"}, "count"),
        ({"preset": 100}, "preset"),
        ({"preset": 64, "count": "rank"}, "count='table'"),
        ({"layers": (2, 6)}, "three"),
        ({"layers": (2, 6, 15, 19)}, "three"),
        ({"layers": (), "count": "rank"}, "layers"),
        ({"layers": (2, 2, 3)}, "rising"),
        ({"layers": (-1, 2, 3)}, "rising"),
        ({"positions": "original"}, "recycle=False"),
        ({"version": "plus", "recycle": True, "positions": "original"}, "recycle=False"),
        ({"positions": "shifted"}, "positions"),
        ({"heads": 0}, "heads"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"rank_scale": math.inf}, "rank_scale"),
        ({"rank_bias": -1.0}, "rank_bias"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ConfigError, match=words):
        create_pruner("sparsevlm", **options)
