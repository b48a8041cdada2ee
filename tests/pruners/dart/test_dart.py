import pytest
import torch
from golden_data import load

from tokenprune import Budget, VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import decoder
from tokenprune.pruners.dart.pivots import largest, least_similar

SPEC = ModelSpec(TransformerSpec(32, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=576)
START, TEXT = 35, 35 + 576  # of the golden's visual tokens, and of the text after them


def golden():
    """Keys (1, L, C), heads side by side, hidden states (1, L, D), and the rest."""
    case = load("dart_t64")
    return case["keys"].transpose(1, 2).flatten(2), case["last_layer_state"], case


def select(keys, text_keys, hidden, text_hidden, k, mask=None, **options):
    signals = {
        "keys": keys,
        "text_keys": text_keys,
        "text_mask": torch.ones(text_keys.shape[:2], dtype=torch.bool) if mask is None else mask,
        "normed_hidden": hidden,
        "text_normed_hidden": text_hidden,
    }
    return create_pruner("dart", **options).select(VisualTokens(torch.zeros_like(hidden), signals), k).keep


def drawn(batch=3, n=30, text=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, number, size, generator=generator) for size in (8, 12) for number in (n, text)]


def literal(keys, text_keys, hidden, text_hidden, k, image_pivots, text_pivots):
    """One row of the method, a token after another."""

    def strongest(vectors, number):
        norms = [sum(abs(float(x)) for x in vector) for vector in vectors]
        return sorted(sorted(range(len(norms)), key=lambda token: -norms[token])[:number])

    def cosine(a, b):
        return float(a.double() @ b.double()) / (float(a.double().norm()) * float(b.double().norm()))

    image, text = strongest(keys, min(image_pivots, k)), strongest(text_keys, text_pivots)
    pivots = [*(hidden[token] for token in image), *(text_hidden[token] for token in text)]
    kept, missing = list(image), k - len(image)
    shares = [missing // len(pivots) + (place < missing % len(pivots)) for place in range(len(pivots))]
    for pivot, share in zip(pivots, shares, strict=True):
        for _ in range(share):
            rest = [token for token in range(len(hidden)) if token not in kept]
            kept.append(min(rest, key=lambda token: cosine(hidden[token], pivot)))
    return sorted(kept)


def test_pivots_are_those_of_the_official_code():
    keys, _, case = golden()
    for part, first, last in (("image", START, TEXT), ("text", TEXT, keys.shape[1])):
        ours = largest(keys[:, first:last], 4, torch.ones(1, last - first, dtype=torch.bool)) + first
        assert ours[0].tolist() == sorted(case[f"{part}_pivots"].tolist())


def test_in_the_official_order_of_the_pivots_the_tokens_are_those_of_the_official_code():
    _, hidden, case = golden()
    pool = torch.ones(1, 576, dtype=torch.bool)
    pool[0, case["image_pivots"].long() - START] = False
    pivots = hidden[:, case["pivot_order"].long()]
    picks = least_similar(hidden[:, START:TEXT], pivots, torch.ones(1, 8, dtype=torch.bool), pool, 64)
    kept = (picks | ~pool).nonzero()[:, 1] + START
    assert torch.equal(kept, case["kept"].long())


def test_the_ascending_order_of_the_pivots_keeps_nearly_the_same_tokens():
    keys, hidden, case = golden()
    assert case["pivot_order"].tolist() != sorted(case["pivot_order"].tolist())
    ours = select(keys[:, START:TEXT], keys[:, TEXT:], hidden[:, START:TEXT], hidden[:, TEXT:], 68)[0] + START
    assert len(set(ours.tolist()) & set(case["kept"].tolist())) == 62  # of 68


@pytest.mark.parametrize("k", [1, 3, 4, 5, 11, 12, 13, 29])
@pytest.mark.parametrize("pivots", [(4, 4), (2, 3), (1, 1), (7, 6)])
def test_literal_transcription(k, pivots):
    keys, text_keys, hidden, text_hidden = drawn()
    image, text = pivots
    ours = select(keys, text_keys, hidden, text_hidden, k, image_pivots=image, text_pivots=text)
    for row in range(3):
        one = literal(keys[row], text_keys[row], hidden[row], text_hidden[row], k, image, text)
        assert ours[row].tolist() == one


def test_by_hand():
    # One pivot each: token 0, at 0 degrees, by its key, and the text's second token, at 90 degrees.
    angle = torch.deg2rad(torch.tensor([0.0, 170.0, 200.0, 260.0, 280.0, 10.0]))
    hidden = torch.stack([angle.cos(), angle.sin()], 1)[None]
    keys = torch.tensor([-9.0, 1, 2, 3, 4, 5])[None, :, None]
    text_hidden, text_keys = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[1.0], [-2.0]]])
    kept = [
        select(keys, text_keys, hidden, text_hidden, k, image_pivots=1, text_pivots=1)[0].tolist() for k in range(1, 6)
    ]
    assert kept == [[0], [0, 1], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_few_tokens_are_the_pivots_with_the_largest_keys(k):
    keys, text_keys, hidden, text_hidden = drawn()
    norms = keys.abs().sum(-1)
    ours = select(keys, text_keys, hidden, text_hidden, k)
    assert torch.equal(ours, norms.topk(k).indices.sort(1).values)


@pytest.mark.parametrize("k", [15, 17])
def test_masked_text_has_no_say(k):
    """Padding comes first; what is left is fewer tokens than there are text pivots in one row, more in the other."""
    keys, text_keys, hidden, text_hidden = drawn(batch=2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :4] = False
    text_keys[0, :4] *= 100
    ours = select(keys, text_keys, hidden, text_hidden, k, mask=mask)
    for row in range(2):
        real = [x[row : row + 1, mask[row]] for x in (text_keys, text_hidden)]
        alone = select(keys[row : row + 1], real[0], hidden[row : row + 1], real[1], k)
        assert torch.equal(ours[row], alone[0])
    assert not torch.equal(ours, select(keys, text_keys, hidden, text_hidden, k))


@pytest.mark.parametrize("kind", ["zeros", "twins", "huge"])
def test_hidden_states_without_information(kind):
    keys, text_keys, hidden, text_hidden = drawn()
    hidden = {"zeros": hidden * 0, "twins": hidden[:, :1].expand(-1, 30, -1), "huge": hidden * 1e18}[kind]
    kept = select(keys, text_keys, hidden, text_hidden, 12)
    assert kept.shape == (3, 12)
    if kind == "zeros":  # all are as similar: the pivots, and the lowest indices
        pivots = keys.abs().sum(-1).topk(4).indices
        for row, own in zip(kept.tolist(), pivots.tolist(), strict=True):
            assert row == sorted(own + [token for token in range(30) if token not in own][:8])


def test_layer_is_where_tokens_leave():
    assert create_pruner("dart").stages(SPEC) == (decoder(2),)
    dart = create_pruner("dart", layer=3)
    assert dart.stages(SPEC) == (decoder(3),)
    assert dart.schedule(SPEC, Budget(average_tokens=128), 576) == (82,)  # (32 * 128 - 3 * 576) / 29 = 81.7
    assert dart.positions == "original"
    with pytest.raises(ConfigError, match="allowed: 1 to 31"):
        create_pruner("dart", layer=0).steps(SPEC)


@pytest.mark.parametrize("option", ["image_pivots", "text_pivots"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_numbers_of_pivots(option, value):
    with pytest.raises(ConfigError, match=option):
        create_pruner("dart", **{option: value})
