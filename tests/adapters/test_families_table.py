"""The table of pruners and families in docs/families.md is what the adapters and the contract tests say."""

from pathlib import Path

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.engine.providers.base import Facts, choose, missing
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.testing.families import families

DOCS = Path(__file__).parents[2] / "docs/families.md"


WRAPPERS = {"compose", "dop", "none"}  # run wherever what they wrap does, and everywhere
PRUNED = {name: create_pruner(name) for name in PRUNERS.names() if name not in WRAPPERS}


def cell(adapter, pruner):
    """What the defaults of a pruner are on a family, or what stands in its way, which ``PrunerContract`` meets.

    Of signals with alternatives the one that is given where nothing else is in the way, such as a text tower that is
    not known. Those of stages inside the LLM are given by all.
    """
    kind, steps = ADAPTERS.get(adapter), pruner.steps(spec_of(adapter))
    if absent := sorted({step.stage.place for step in steps} - {*kind.places}):
        return f"no: stage {', '.join(absent)}"
    before = [step.selector.requires for step in steps if not step.stage.inside]
    wanted, facts = sorted({signal for requires in before for signal in requires}, key=str), Facts(kind)
    if absent := sorted({signal.plain for signal in missing(wanted, facts)}):
        return f"no: {', '.join(absent)}"
    inside = {step.positions for step in steps if step.stage.inside}
    assert all(inside <= {*family.inside} for family in families(adapter).values())
    given = [choose(signal, facts, inside=False) for signal in wanted if len(signal.alternatives) > 1]
    parts = [step.stage.place for step in steps[:1] if step.stage.place in ("tower", "projector")]
    parts += dict.fromkeys(step.positions for step in steps)
    return ", ".join(dict.fromkeys([*parts, *(signal.plain for signal in given)]))


def spec_of(adapter):
    family = next(iter(families(adapter).values()))
    model, _ = family.build("sdpa")
    return ADAPTERS.get(adapter).spec_from_config(model.config)


def table():
    adapters = ADAPTERS.names()
    lines = [["pruner", *(f"`{adapter}`" for adapter in adapters)], ["---"] * (len(adapters) + 1)]
    for name, pruner in PRUNED.items():
        lines.append([f"`{name}`", *(cell(adapter, pruner) for adapter in adapters)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_table_is_what_is_tested():
    wanted = table()
    assert wanted in DOCS.read_text(), f"docs/families.md must hold\n\n{wanted}"
