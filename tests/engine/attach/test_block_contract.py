"""What people do around a block, over all families, before and inside the LLM; and the table of it in the docs."""

from pathlib import Path

import pytest
from block_cases import CASES, PLACES, Subject

import tokenprune as tp
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE
from tokenprune.testing.families import families

DOCS = Path(__file__).parents[3] / "docs/concepts.md"
FAMILIES = families()
SOME = ("llava", "qwen2_5_vl")  # position ids with one axis, and with several


def runs():
    """By default, each case on each family in one place in turn; on ``SOME`` in both; if slow, on one family in one."""
    for at, case in enumerate(CASES):
        for turn, name in enumerate(SOME if case.some else FAMILIES):
            for index, place in enumerate(PLACES):
                spare = turn == 1 or (at + index) % 2 if case.some else (at + turn + index) % 2 and name not in SOME
                yield pytest.param(case, name, place, marks=pytest.mark.full if spare else ())


def run(case, name, place):
    """What a refusal says; None if the case works."""
    subject = Subject(FAMILIES[name], place, *FAMILIES[name].build("sdpa"))
    try:
        case.check(subject)
    except tp.TokenPruneError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("case", "name", "place"), [*runs()], ids=lambda x: x if isinstance(x, str) else x.what[:40])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:(peft|torch|transformers)[.]")
def test_it_works_or_is_refused(case, name, place):
    wanted, said = case.refusal(place, name), run(case, name, place)
    if wanted is None:
        assert said is None
    else:
        assert said is not None
        assert wanted in said


def cell(case, place):
    refusal = case.refusal(place)
    if refusal is not None:
        return f"refused: {refusal}"
    return f"works; refused by {', '.join(case.others)}" if case.others else "works"


def table():
    lines = ["| | before the LLM | inside the LLM |", "|---|---|---|"]
    for kind in dict.fromkeys(case.kind for case in CASES):
        lines.append(f"| **{kind}** | | |")
        lines += [
            f"| {case.what} | {cell(case, 'before')} | {cell(case, 'inside')} |" for case in CASES if case.kind == kind
        ]
    return "\n".join(lines)


@pytest.mark.skipif(not HOOKS_RUN_ONCE, reason="the table is that of a newer transformers")
def test_the_table_in_the_docs_is_what_is_tested():
    assert table() in DOCS.read_text(), f"docs/concepts.md must hold\n\n{table()}"
