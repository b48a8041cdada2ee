"""What a third party registers is used wherever what is shipped is."""

import pytest
import torch

import tokenprune as tp
from tokenprune.bench.flops_table import CONVENTIONS
from tokenprune.core.errors import RegistryError
from tokenprune.costs.conventions import register_convention
from tokenprune.costs.model_card import load_card
from tokenprune.functional.kernels import Cosine, register_kernel
from tokenprune.report.files import write
from tokenprune.report.sections import register_section
from tokenprune.sweeps import runner
from tokenprune.sweeps.config import parse_config


def test_a_kernel(outside):
    outside("kernel.py")
    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    chosen = tp.create_pruner("cdpruner", conditioning="none", kernel="squared_cosine").select(tp.VisualTokens(x), 3)
    unit = torch.nn.functional.normalize(x[0], dim=-1).double()
    matrix, picked = (unit @ unit.T).square(), []
    for _ in range(3):
        gains = {i: torch.logdet(matrix[[*picked, i]][:, [*picked, i]]) for i in range(8) if i not in picked}
        picked.append(max(gains, key=lambda i: (round(float(gains[i]), 6), -i)))
    assert chosen.keep[0].tolist() == sorted(picked)


def test_a_convention(outside):
    outside("convention.py")
    spec = load_card("llava-1.5-7b").spec
    plan = tp.OperationPlan.drop_at(spec, (), (), 576)
    wanted = 32 * 2 * (576 + 40) * 3 * 4096 * 11008
    assert CONVENTIONS["mlp_alone"].prefill(spec, plan, 40) == wanted


def test_a_task_a_conditioning_and_a_section_of_the_report(outside, tmp_path):
    for name in ("task.py", "conditioning.py", "section.py"):
        outside(name)
    config = {
        "task": {"name": "two_colors", "num_samples": 2},
        "pruner": {"name": "cdpruner", "conditioning": "centre"},
        "budget": {"keep_tokens": 12},
        "timing_repeats": 0,
        "output": str(tmp_path),
    }
    outcome = runner.run(parse_config(config))
    assert [record.label for record in outcome.records] == ["none", "random", "cdpruner conditioning=centre"]
    report = write(outcome.folder, samples=outcome.samples)
    assert "## Winner" in report.read_text()
    for file in ("report.html", "report.tex"):
        assert "Winner" in report.with_name(file).read_text()


@pytest.mark.parametrize(
    ("register", "kind", "taken"),
    [
        (register_kernel, "kernel", "cosine"),
        (lambda name: register_convention(name, "x"), "convention", "exact"),
        (register_section, "report section", None),
    ],
)
def test_bad_names(register, kind, taken):
    with pytest.raises(RegistryError, match=f"{kind} name 'A b' is malformed"):
        register("A b")(Cosine)
    if taken:
        with pytest.raises(RegistryError, match=f"{kind} name '{taken}' is taken"):
            register(taken)(Cosine)
