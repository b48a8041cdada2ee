"""A fit from its configuration to its policies, on a tiny model of random weights."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, ConfigError, DataError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.policies import fit as fit_module
from tokenprune.policies import measurements
from tokenprune.policies.divergence import Batch, Objective
from tokenprune.policies.fit import fit, grid, naive_ratio
from tokenprune.policies.fit_config import FitConfig
from tokenprune.pruners.dop import DOP, policy_file
from tokenprune.pruners.dop.latency import LatencyModel
from tokenprune.sweeps import provenance, runner
from tokenprune.sweeps.build import build_base
from tokenprune.sweeps.config import Part, parse_config
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava

SAMPLES, POINTS = 3, 3
TASK = {"num_samples": 7}
LATENCY = LatencyModel((0.1, 0.01, 0.02, 0.0005), (0.05, 0.03))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava"), clip=False))


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(**changes):
        values = {
            "model": ModelConfig(name="llava", path=checkpoint),
            "task": Part("scenes", TASK),
            "pruner": Part("divprune"),
            "budget": {"average_tokens": (12.0, 6.0)},
            "samples": SAMPLES,
            "points": POINTS,
            "batch_size": 2,
            "top": 3,
            "output": str(tmp_path / "fits"),
        }
        return FitConfig(**values | changes)

    return make


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """A machine that takes the same time always."""
    monkeypatch.setattr(measurements, "time_layers", lambda adapter, text: LATENCY)


@pytest.fixture
def done(monkeypatch):
    """What was really measured, in order: ("curves", ids of the samples) or ("joint", id of the first, depths)."""
    log, measure, pruned = [], measurements.measure, Batch.pruned

    def curves(adapter, samples, *rest):
        log.append(("curves", [sample.id for sample in samples]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batch, "pruned", pruned)
            return measure(adapter, samples, *rest)

    def jointly(self, pruner, budget):
        log.append(("joint", self.prepared.questions[0], pruner))
        return pruned(self, pruner, budget)

    monkeypatch.setattr(measurements, "measure", curves)
    monkeypatch.setattr(Batch, "pruned", jointly)
    return log


def journal_of(fitted):
    return fitted.policies[0][0].parent / "measurements.jsonl"


def test_policies(config):
    fitted = fit(config())
    assert [path.name for path, _ in fitted.policies] == ["average_tokens_12.yaml", "average_tokens_6.yaml"]
    for (path, policy), budget in zip(fitted.policies, (12, 6), strict=True):
        assert policy_file.load(path) == policy
        assert policy.budget.kind == "average_tokens"
        assert policy.budget.value == budget
        assert policy.objective.samples == SAMPLES
        assert policy.base == {"name": "divprune", **policy.base}
        assert len(policy.candidates) == 3
        for one in policy.candidates:
            assert one.depths.attention * one.depths.keep / 4 == one.cost <= budget
            assert one.measured is not None
        assert [one.predicted for one in policy.candidates] == sorted(one.predicted for one in policy.candidates)
        assert policy.chosen.measured == min(one.measured for one in policy.candidates)
        assert policy.chosen in policy.candidates
    assert fitted.runs == sum(len(curve.points) for curve in policy.curves.to_mapping().values()) == 9
    assert naive_ratio(fitted) == fitted.seconds / (9 * fitted.forward_seconds) > 0


def test_measured_is_the_divergence_of_the_policy_itself(config):
    """Of the pruner that the file makes, over all questions at once."""
    (path, policy), _ = fit(config()).policies
    session = build_base(config().model, Part("divprune"))[0].load()
    batch = Batch(session, Scenes(**TASK).samples()[:SAMPLES], Objective(), frozenset())
    whole = batch.pruned(DOP(policy=str(path)), policy.depths and Budget(keep_tokens=policy.depths.keep))
    assert float(whole.mean()) == pytest.approx(policy.chosen.measured, rel=1e-4)
    for name, curve in policy.curves.to_mapping().items():
        for value, divergence in curve.points.items():
            if name != "tokens":
                assert float(batch.depths((name, value)).mean()) == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "depths"),
    [
        ({"query": True}, {"attention", "query", "mlp", "tokens"}),
        ({"attention": "update_only", "budget": {"flops": (7e6,)}}, {"attention", "mlp", "tokens"}),
        ({"positions": "teacher_forced", "direction": "reverse", "max_new_tokens": 3}, {"attention", "mlp", "tokens"}),
    ],
    ids=["query", "update_only", "teacher_forced"],
)
def test_objectives(config, changes, depths):
    policy = fit(config(samples=2, top=1, **changes)).policies[0][1]
    assert policy.curves.to_mapping().keys() == depths
    assert policy.objective.attention == changes.get("attention", "remove")
    assert policy.objective.positions == changes.get("positions", "first_token")
    assert policy.objective.direction == changes.get("direction", "forward")
    assert policy.depths.update_only == (policy.objective.attention == "update_only")


def test_the_objective_is_what_is_measured(config):
    variants = [{}, {"direction": "reverse"}, {"positions": "teacher_forced", "max_new_tokens": 3}]
    values = [fit(config(samples=2, top=1, **changes)).policies[0][1].curves.mlp.points[0] for changes in variants]
    assert len({f"{value:.3g}" for value in values}) == 3


@pytest.mark.parametrize("budget", [{"flops": (7e6,)}, {"average_tokens": (7.5,)}, {"milliseconds": (9.0,)}], ids=str)
def test_a_run_with_a_policy_spends_at_most_its_budget(config, checkpoint, tmp_path, budget):
    ((path, policy),) = fit(config(budget=budget, samples=2)).policies
    ((kind, (value,)),) = budget.items()
    run = parse_config(
        {
            "model": {"name": "llava", "path": checkpoint},
            "task": {"name": "scenes", "num_samples": 2},
            "pruner": {"name": "dop", "policy": str(path)},
            "budget": {"keep_tokens": 20},  # of the baselines; the policy has its own
            "timing_repeats": 0,
            "max_new_tokens": 2,
            "output": str(tmp_path / "runs"),
        }
    )
    outcome = runner.run(run)
    assert not outcome.failed
    (record,) = [record for record in outcome.records if record.pruner["name"] == "dop"]
    assert record.budget == {"keep_tokens": policy.depths.keep}
    assert record.metrics["kept_tokens"] == policy.depths.keep
    assert policy.budget.text_tokens == round(record.metrics["text_tokens"])
    if kind == "milliseconds":
        assert policy.budget.latency == LATENCY
        assert policy.chosen.cost <= value
    else:
        spent = record.metrics[{"flops": "llm_prefill_flops"}.get(kind, kind)]
        assert 0.5 * value < spent <= value * (1 + 1e-3)  # the text differs in length by a token
        assert spent == pytest.approx(policy.chosen.cost, rel=1e-3)


def test_again_measures_nothing_and_writes_the_same(config, done):
    first = fit(config())
    before = {path: path.read_bytes() for path, _ in first.policies}
    assert len(done) == 2 + 2 * len({one.depths for _, p in first.policies for one in p.candidates})
    done.clear()
    again = fit(config())
    assert done == []
    assert {path: path.read_bytes() for path, _ in again.policies} == before
    assert (again.seconds, again.forward_seconds) == (first.seconds, first.forward_seconds)


def test_other_budgets_measure_only_what_is_new(config, done):
    first = fit(config())
    done.clear()
    fit(config(budget={"average_tokens": (12.0,)}, top=2))  # of these, all is known
    assert done == []
    ((_, policy),) = fit(config(budget={"flops": (7e6,)})).policies
    known = {one.depths for _, p in first.policies for one in p.candidates}
    assert {what for what, *_ in done} <= {"joint"}
    assert len(done) == 2 * len({one.depths for one in policy.candidates} - known)


@pytest.mark.parametrize("left", [0, 1, 5])
def test_lines_that_are_lost_are_all_that_is_measured_again(config, done, left):
    fitted = fit(config())
    lines = journal_of(fitted).read_text().splitlines(keepends=True)
    before = {path: path.read_bytes() for path, _ in fitted.policies}
    journal_of(fitted).write_text("".join(lines[:left]))
    done.clear()
    fit(config())
    assert len(done) == len(lines) - left
    assert [what for what, *_ in done] == [json.loads(line)["what"] for line in lines[left:]]
    assert {path: path.read_bytes() for path, _ in fitted.policies} == before


def test_a_half_written_line_costs_only_itself(config, done, caplog):
    fitted = fit(config())
    content = journal_of(fitted).read_bytes()
    journal_of(fitted).write_bytes(content[:-9])
    done.clear()
    fit(config())
    assert [what for what, *_ in done] == ["joint"]
    assert "half-written" in caplog.text
    assert journal_of(fitted).read_bytes() == content


@pytest.mark.parametrize("where", ["curves", "joint"])
def test_a_fit_that_is_stopped_goes_on(config, done, monkeypatch, where, tmp_path):
    depths, pruned, calls = Batch.depths, Batch.pruned, []

    def stopping(real, number):
        def stop(self, *rest):
            calls.append(rest)
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(self, *rest)

        return stop

    with monkeypatch.context() as patch:
        name, real, number = ("depths", depths, 9) if where == "curves" else ("pruned", pruned, 5)
        patch.setattr(Batch, name, stopping(real, number))
        with pytest.raises(KeyboardInterrupt):
            fit(config())
    assert not list(tmp_path.rglob("*.yaml"))
    finished = len(next(tmp_path.rglob("measurements.jsonl")).read_text().splitlines())
    assert finished == (1 if where == "curves" else 2 + 4)  # batches of curves, then policies
    done.clear()
    resumed = fit(config())
    total = len(journal_of(resumed).read_text().splitlines())
    assert len(done) == total - finished
    once = fit(config(output=str(tmp_path / "once")))
    for (a, _), (b, _) in zip(resumed.policies, once.policies, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_other_code_weights_or_data_are_measured_anew(config, done, monkeypatch):
    small = {"samples": 2, "top": 1, "budget": {"average_tokens": (12.0,)}}
    fit(config(**small))
    assert len(done) == 2
    for name in ("code_hash", "model_hash", "data_hash"):
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(provenance, name, lambda *args: "other")
            ((_, policy),) = fit(config(**small)).policies
            assert "other" in dataclasses.asdict(policy.origin).values()
        assert len(done) == 2, name
    done.clear()
    fit(config(**small))
    assert done == []


def test_the_code_of_the_base_counts(config, monkeypatch):
    seen = []
    monkeypatch.setattr(provenance, "code_hash", lambda *classes: seen.append({c.__name__ for c in classes}) or "x")
    fit(config(samples=2, top=1))
    assert seen == [{"DOP", "DivPrune", "LlavaAdapter"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 4},
        {"points": 2},
        {"direction": "reverse"},
        {"pruner": Part("random")},
        {"pruner": Part("divprune", {"positions": "original"})},
    ],
    ids=str,
)
def test_other_options_have_a_folder_of_their_own(config, changes):
    folders = {fit_module._journal(config()).path.parent, fit_module._journal(config(**changes)).path.parent}
    assert len(folders) == 2


def test_latency_is_timed_once(config, monkeypatch):
    timed = []
    monkeypatch.setattr(measurements, "time_layers", lambda adapter, text: timed.append(text) or LATENCY)
    budget = {"milliseconds": (9.0,)}
    for _ in range(2):
        fit(config(budget=budget, samples=1, top=1))
    assert len(timed) == 1
    monkeypatch.setattr(provenance, "device_name", lambda device: "another machine")
    fit(config(budget=budget, samples=1, top=1))
    assert len(timed) == 2


@pytest.fixture
def unloaded(monkeypatch):
    """Weights that must not be loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tokenprune.engine.loading.AutoModelForImageTextToText.from_pretrained", refuse)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": {"average_tokens": (0.2,)}}, BudgetError, "no policy within the curves costs 0.2 average_tokens"),
        ({"budget": {"average_tokens": (12.0, 0.2)}}, BudgetError, "the least is 0.25"),
        ({"budget": {"flops": (9.0,)}}, BudgetError, "no policy within the curves costs 9 flops or less"),
        ({"pruner": Part("divprun")}, None, "did you mean 'divprune'"),
        ({"pruner": Part("fastv", {"layer": 2})}, ConfigError, "'fastv': .* selects before the LLM alone"),
        (
            {"pruner": Part("dop", {"base": "random", "mlp_depth": 2})},
            ConfigError,
            "'dop': .* selects before the LLM alone",
        ),
        ({"pruner": Part("fastv", {"layer": 9})}, ConfigError, "layer=9, but the LLM has 4"),
        ({"task": Part("scene")}, None, "did you mean 'scenes'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found_before_weights_load(config, unloaded, changes, error, message):
    with pytest.raises(error or fit_module.ConfigError.__mro__[1], match=message):
        fit(config(**changes))
    assert not Path(config().output).exists()


def test_a_folder_that_cannot_be_written(config, unloaded, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        fit(config(output=str(tmp_path / "taken")))
    journal = fit_module._journal(config()).path
    journal.unlink()
    journal.mkdir()
    with pytest.raises(DataError, match="cannot be"):
        fit(config())


@pytest.mark.parametrize("budget", [{"milliseconds": (0.1,)}, {"flops": (2e6,)}], ids=str)
def test_a_budget_below_the_text_s_own_cost_is_found_before_anything_is_measured(config, done, budget):
    with pytest.raises(BudgetError, match="no policy within the curves costs"):
        fit(config(budget=budget))
    assert done == []


def spec(layers, tokens=576):
    return ModelSpec(TransformerSpec(layers, 64, 128, 4, 4, 16, 3), vocabulary=99, visual_tokens=tokens)


def test_grid(config):
    points = grid(spec(32), config(points=4))
    assert points == [
        *(("attention", depth) for depth in (1, 11, 21, 31)),
        *(("mlp", depth) for depth in (0, 10, 20, 30)),
        *(("tokens", tokens) for tokens in (32, 79, 197, 490)),
    ]
    update_only = grid(spec(32), config(points=2, attention="update_only"))
    assert update_only[:4] == [("attention", 0), ("attention", 30), ("mlp", 0), ("mlp", 30)]
    assert [p for p in grid(spec(32), config(points=2, query=True)) if p[0] == "query"] == [("query", 0), ("query", 30)]


def test_a_grid_finer_than_the_model_has_each_value_once(config):
    points = grid(spec(3, tokens=5), config(points=9))
    assert points == [
        *(("attention", d) for d in (1, 2)),
        *(("mlp", d) for d in (0, 1)),
        *(("tokens", n) for n in (1, 2, 3, 4)),
    ]


def test_torch_is_left_as_it_was(config):
    """Neither gradients nor the state of the random numbers."""
    torch.manual_seed(3)
    fit(config(samples=1, top=1))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
