import math
from dataclasses import dataclass, replace

import pytest
import torch
from golden_data import load
from golden_towers import golden_tower, pruned_by

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, ModelError, SelectionError
from tokenprune.core.signals import TowerAttention
from tokenprune.core.stages import PRE_LLM, tower
from tokenprune.pruners.base import Pruner, ScorePruner
from tokenprune.pruners.mustdrop import likeness, windows
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruner_on_models import TINY

MUSTDROP = create_pruner("mustdrop")
THRESHOLD = create_pruner("mustdrop", count="threshold")


@pytest.mark.parametrize(("pruner", "k"), [(MUSTDROP, 336), (THRESHOLD, 576)], ids=["budget", "threshold"])
def test_windows_and_means_are_those_of_the_official_code(pruner, k):
    case = load("mustdrop_merge_w3")
    tokens = VisualTokens(case["hidden_states"][:, 1:], grid=(24, 24))
    chosen = pruner.select(tokens, k)
    anchor, size = case["anchor"][:, 1:].long(), case["size"][:, 1:].long()
    assert torch.equal(chosen.keep, anchor.sort(1).values)
    place = torch.searchsorted(chosen.keep, anchor)
    assert torch.equal(chosen.into[0].bincount(minlength=576)[anchor[0]], size[0])
    found, wanted = chosen.apply(tokens.features)[0, place[0]], case["output"][0, 1:]
    torch.testing.assert_close(found, wanted, atol=2e-6 * float(wanted.abs().max()), rtol=0)
    # Means come first in the official code, by falling likeness.
    made = (size[0] == 9).nonzero()[:, 0]
    alike = likeness(tokens.features, windows((24, 24), 3, 336))[0, windows((24, 24), 3, 336)[anchor[0, made]]]
    assert (alike.diff() < 0).all()


@dataclass(frozen=True, kw_only=True)
class ThenByLastLayer(ScorePruner):
    """What CLS attends to in the last layer of the tower, of 80 patches that another pruner leaves inside it."""

    first: Pruner
    requires = frozenset({TowerAttention("cls", -1)})

    def stages(self, spec):
        return (tower(1), PRE_LLM)

    def counts(self, spec, keep, total):
        return ((total if self.first.adaptive else 80), keep)

    def steps(self, spec):
        return tuple(
            replace(step, selector=self.first) if step.stage == tower(1) else step for step in super().steps(spec)
        )

    def score(self, tokens):
        return tokens.signal(TowerAttention("cls", -1)).mean(1)


@torch.no_grad()
@pytest.mark.parametrize(("pruner", "k"), [(MUSTDROP, 80), (THRESHOLD, 144)], ids=["budget", "threshold"])
def test_a_tower_gives_what_it_gives_with_the_official_code(pruner, k):
    case, session, inputs = golden_tower("mustdrop_e2e_24l")
    entering = []
    layer = session.adapter.model.base_model.vision_tower.encoder.layers[1].self_attn
    layer.q_proj.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    pruned, features = pruned_by(session, inputs, pruner, k)
    assert features.shape[1] == 80
    kept = pruned.early[0][1].nonzero()[:, 0]
    wanted = case["features"][0]
    order = torch.cdist(wanted, features[0]).argmin(1)
    assert sorted(order.tolist()) == list(range(80))
    largest = float(wanted.abs().max())
    torch.testing.assert_close(features[0, order], wanted, atol=2e-4 * largest, rtol=0)
    norm = session.adapter.model.base_model.vision_tower.encoder.layers[1].layer_norm1
    merged = norm(case["after_merge"])[0, 1:]
    torch.testing.assert_close(entering[0][0, 1:][order], merged, atol=1e-5, rtol=0)
    # What the official code protects inside the LLM can be read behind the stage.
    protected, _ = pruned_by(session, inputs, ThenByLastLayer(first=pruner), math.ceil(0.08 * 80))
    assert (
        protected.early[-1][1].nonzero()[:, 0].tolist() == kept[order[case["key_set"][0].long()]].sort().values.tolist()
    )


def picture(alike):
    """(1, 16, 2) features of a grid of 4 x 4; in each window of 2 x 2 the angle between neighbours is given."""
    angles = torch.zeros(4, 4)
    for number, step in enumerate(alike):
        y, x = 2 * (number // 2), 2 * (number % 2)
        angles[y : y + 2, x : x + 2] = torch.tensor([[0.0, 1], [2, 3]]) * step
    flat = torch.deg2rad(angles).flatten()
    return torch.stack([flat.cos(), flat.sin()], 1)[None]


def test_by_hand():
    tokens = VisualTokens(picture([20, 5, 30, 0]), grid=(4, 4))
    pruner = create_pruner("mustdrop", window=2)
    chosen = pruner.select(tokens, 13)
    own = list(range(16))
    assert chosen.into.tolist() == [[15 if at in (10, 11, 14, 15) else at for at in own]]
    # Three more leave with the second window, and one with the third: its first two patches are merged.
    chosen = pruner.select(tokens, 9)
    last = {10: 15, 11: 15, 14: 15, 2: 7, 3: 7, 6: 7, 0: 1}
    assert chosen.into.tolist() == [[last.get(at, at) for at in own]]
    # All windows are merged, and with fewer tokens than that they are larger.
    assert pruner.select(tokens, 4).keep.tolist() == [[5, 7, 13, 15]]
    assert pruner.select(tokens, 3).keep.shape == (1, 3)
    assert windows((4, 4), 2, 3).unique().tolist() == [0]
    assert windows((3, 5), 2, 9).view(3, 5).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def test_likeness_is_the_mean_cosine_of_pairs():
    x, window = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)), windows((3, 3), 2, 9)
    found = likeness(x, window)
    for row in range(2):
        for number in range(3):
            unit = torch.nn.functional.normalize(x[row, window == number], dim=1)
            cosines = (unit @ unit.mT)[~torch.eye(len(unit), dtype=torch.bool)]
            torch.testing.assert_close(found[row, number], cosines.mean())
    assert (found[:, 3] == -torch.inf).all()


def test_a_threshold_decides_how_many_stay():
    tokens = VisualTokens(torch.cat([picture([20, 5, 40, 0]), picture([40, 50, 40, 0])]), grid=(4, 4))
    pruner = create_pruner("mustdrop", window=2, count="threshold", threshold=0.9)
    assert pruner.budget == tp.Budget(keep_ratio=1.0)
    # The two in a window of steps of 20 degrees have a mean cosine of 0.86.
    assert pruner.select(tokens, 16).there.sum(1).tolist() == [10, 13]
    assert pruner.select(tokens, 12).there.sum(1).tolist() == [10, 12]


@torch.no_grad()
def test_pictures_of_a_batch_that_keep_unequal_numbers_are_refused():
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 2)
    hidden = []
    hook = model.base_model.vision_tower.encoder.layers[0].register_forward_hook(lambda *args: hidden.append(args[2]))
    model(**inputs)
    hook.remove()
    alike = likeness(hidden[0][:, 1:], windows((5, 5), 3, 25))
    between = float(alike.max(1).values.mean())
    pruner = create_pruner("mustdrop", count="threshold", threshold=between)
    with (
        pytest.raises(ModelError, match="all pictures of a batch must keep equal numbers"),
        tp.prune(model, processor, pruner),
    ):
        model(**inputs)


def test_it_stands_behind_the_first_layer():
    assert MUSTDROP.stages(TINY) == (tower(1),)


def test_without_a_grid_it_is_refused():
    with pytest.raises(SelectionError, match="mustdrop needs visual tokens in a grid"):
        MUSTDROP.select(VisualTokens(torch.ones(1, 6, 2)), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window.*at least 2"),
        ({"threshold": 1.5}, r"threshold.*\[-1, 1\]"),
        ({"count": "all"}, "Allowed: budget, threshold"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("mustdrop", **options)
