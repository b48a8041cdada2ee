"""The table and the picture say what the policy is."""

import io
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from rich.console import Console

from tokenprune.core.errors import ConfigError
from tokenprune.policies.draw import RUNS, SKIPPED, draw_policy, policy_table
from tokenprune.pruners.dop.curves import Curves
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.solve import Candidate


def text_of(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_table(policy):
    table = policy_table(policy)
    assert [row.style for row in table.rows] == ["bold", *[None] * (len(policy.candidates) - 1)]
    text = text_of(table)
    rows = [line.split() for line in text.splitlines()]
    for candidate in policy.candidates:
        depths = candidate.depths
        layers = [policy.curves.layers if depths.update_only else depths.attention, depths.receivers, depths.mlp]
        row = [*map(str, (*layers, depths.keep)), f"{candidate.predicted:.3g}"]
        if depths == policy.depths:
            assert ["chosen", *row, "0.25", f"{candidate.cost:.4g}"] in rows
        else:
            assert [*row, "-", f"{candidate.cost:.4g}"] in rows
    assert sum("chosen" in row for row in rows) == 1
    words = " ".join(text.split())
    for word in ("embedded", "cdpruner", "100 samples", policy.objective.attention, policy.budget.kind):
        assert word in words


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the axes and the pixels."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))

    def draw(policy, layers):
        draw_policy(policy, layers, tmp_path / "policy.png")
        return figures[-1].axes, matplotlib.image.imread(tmp_path / "policy.png")

    return draw


def test_picture(policy, drawn, spec):
    (plan, depth, tokens), pixels = drawn(policy, 8)
    (mesh,) = plan.collections
    larger = replace(spec, llm=replace(spec.llm, layers=8))
    expected = policy.depths.plan(larger, 40).active[:, :, 1].T.numpy()
    assert np.array_equal(mesh.get_array().reshape(3, 8), expected)
    assert [label.get_text() for label in plan.get_yticklabels()] == ["K/V", "Q/O", "MLP"]
    ends = expected.sum(1)
    labels = [(end / 2, str(policy.depths.keep)) for end in ends if end] + [
        ((8 + end) / 2, "0") for end in ends if end < 8
    ]
    assert sorted((text.get_position()[0], text.get_text()) for text in plan.texts) == sorted(labels)
    for axes in (plan, depth, tokens):
        assert axes.get_xlabel()
    assert "nats" in depth.get_ylabel()
    for colour in (RUNS, SKIPPED):
        share = (abs(pixels[..., :3] - np.array(to_rgb(colour))) < 0.01).all(-1).mean()
        assert share > 0.02, colour


def test_curves_in_the_picture(policy, drawn):
    (_, depth, tokens), _ = drawn(policy, 6)
    lines = {(tuple(x), tuple(y)) for axes in (depth, tokens) for x, y in (line.get_data() for line in axes.lines)}
    for curve in policy.curves.to_mapping().values():
        known = np.flatnonzero(np.isfinite(curve.values))
        assert (tuple(known), tuple(curve.values[known])) in lines
        assert ((*curve.points, curve.full), (*curve.points.values(), 0.0)) in lines
    depths = policy.depths
    assert ((depths.keep,), (policy.curves.tokens.values[depths.keep],)) in lines
    assert ((depths.attention,), (policy.curves.attention.values[depths.attention],)) in lines


@pytest.mark.parametrize("layers", [6, 28, 80])
def test_edges(two_depths, drawn, layers):
    """Dead work that somebody wrote by hand, nothing measured, and operations that never or always run."""
    curves = Curves.of(6, 40, attention={}, mlp={}, tokens={})
    for depths in (Depths(attention=6, mlp=6, keep=40), Depths(attention=0, mlp=0, keep=1)):
        policy = replace(two_depths, curves=curves, chosen=Candidate(depths, 0.0, 1.0), candidates=())
        (plan, *_), _ = drawn(policy, layers)
        assert plan.collections[0].get_array().sum() == 3 * depths.attention


def test_a_model_with_fewer_layers(two_depths, tmp_path):
    with pytest.raises(ConfigError, match="layers deep, but the LLM has 2"):
        draw_policy(two_depths, 2, tmp_path / "policy.png")
    assert not list(tmp_path.iterdir())
