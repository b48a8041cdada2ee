"""The table of pruners and families in docs/families.md is what the adapters and the contract tests say."""

from pathlib import Path

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.signals import PairedImage
from tokenprune.core.stages import PRE_LLM
from tokenprune.engine.providers.base import Facts, missing
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.testing.families import families
from tokenprune.towers.text.base import TUNED

DOCS = Path(__file__).parents[2] / "docs/families.md"


WRAPPERS = {"compose", "dop", "none"}  # run wherever what they wrap does, and everywhere
PRUNED = {name: create_pruner(name) for name in PRUNERS.names() if name not in WRAPPERS}
PRUNED["cdpruner, prompt_embedding"] = create_pruner("cdpruner", conditioning="prompt_embedding")


def cell(adapter, name, pruner):
    """``yes``, or the signals that are missing, or the reason of a refusal, which ``PrunerContract`` meets.

    Test_text_tower has those that must be given one.
    """
    steps = pruner.steps(spec_of(adapter))
    before = [step.selector.requires for step in steps if step.stage == PRE_LLM]
    wanted, facts = {signal for requires in before for signal in requires}, Facts(ADAPTERS.get(adapter))
    paired = any(isinstance(signal, PairedImage) for signal in wanted)
    unasked = paired and TUNED & {*ADAPTERS.get(adapter).model_types}
    absent = sorted(signal.plain for signal in missing(wanted, facts))
    inside = {step.selector.positions for step in steps if step.stage != PRE_LLM}
    if absent:
        return f"no: {', '.join(absent)}"
    if not all(inside <= {*family.inside} for family in families(adapter).values()):
        return "refused: gaps cannot be closed inside the LLM"
    return "yes, given `text_tower`" if unasked else "yes"


def spec_of(adapter):
    family = next(iter(families(adapter).values()))
    model, _ = family.build("sdpa")
    return ADAPTERS.get(adapter).spec_from_config(model.config)


def table():
    lines = [["adapter", *PRUNED], ["---"] * (len(PRUNED) + 1)]
    for adapter in ADAPTERS.names():
        lines.append([f"`{adapter}`", *(cell(adapter, name, pruner) for name, pruner in PRUNED.items())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_table_is_what_is_tested():
    wanted = table()
    assert wanted in DOCS.read_text(), f"docs/families.md must hold\n\n{wanted}"
