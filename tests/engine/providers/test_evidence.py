"""Controls: relevance to a question that is not asked, and the truth instead of relevance."""

import pytest
import torch
from PIL import Image

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Evidence
from tokenprune.core.turn import only_picture, picture_size
from tokenprune.embedded.model import load_embedded
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.providers.evidence import check_samples, evidence
from tokenprune.engine.session import Session
from tokenprune.functional.evidence import evidence_tokens
from tokenprune.pruners.base import create_pruner
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava

K = Budget(keep_tokens=16)
OTHER, ORACLE = {"conditioning": {"name": "clip_text", "question": "other"}}, {"conditioning": "oracle"}


@pytest.fixture(scope="module")
def embedded():
    return adapter_for(*load_embedded())


@pytest.fixture(scope="module")
def samples():
    return Scenes(num_samples=6).samples()


def prune(adapter, samples, given="samples", **options):
    prepared = Session(adapter).prepare(samples)
    more = {"samples": samples} if given else {}
    return Session(adapter).prune_inputs(
        prepared.inputs, create_pruner("cdpruner", **options), K, prepared.questions, **more
    )


@pytest.mark.parametrize("conditioning", ["clip_text", "prompt_embedding"])
def test_another_question_chooses_and_the_prompt_stays(embedded, samples, conditioning):
    asked = ({"name": conditioning, "question": question} for question in ("own", "other"))
    own, other = (prune(embedded, samples, conditioning=each) for each in asked)
    prepared = Session(embedded).prepare(samples)
    told = Session(embedded).prune_inputs(
        prepared.inputs,
        create_pruner("cdpruner", conditioning=conditioning),
        K,
        [sample.other_question for sample in samples],
    )
    assert torch.equal(other.selection.order, told.selection.order)
    assert not torch.equal(other.selection.order, own.selection.order)
    assert torch.equal(other.inputs["input_ids"], own.inputs["input_ids"])


def test_signals_are_kept_for_each_question_by_itself(embedded, samples):
    prepared = Session(embedded).prepare(samples)
    pruners = [create_pruner("cdpruner", **options) for options in ({}, OTHER, ORACLE)]
    requires = frozenset().union(*(pruner.requires for pruner in pruners))
    encoded = Session(embedded).encode(prepared.inputs, requires)
    for _ in range(2):  # what was made before must not be taken for what is asked now
        for pruner in pruners:
            shared, alone = (
                Session(embedded).prune_inputs(
                    prepared.inputs, pruner, K, prepared.questions, encoded=each, samples=samples
                )
                for each in (encoded, None)
            )
            assert torch.equal(shared.selection.order, alone.selection.order)


def test_images_that_are_encoded_once_are_asked_more_than_one_thing(embedded, samples):
    inputs, pruner = Session(embedded).prepare(samples).inputs, create_pruner("cdpruner")
    encoded = Session(embedded).encode(inputs, pruner.requires)
    asked = (["Is there a cyan diamond?"] * 6, ["What color is the triangle?"] * 6)
    for questions in (*asked, *asked):
        shared, alone = (
            Session(embedded).prune_inputs(inputs, pruner, K, questions, encoded=each) for each in (encoded, None)
        )
        assert torch.equal(shared.selection.order, alone.selection.order)


@pytest.mark.parametrize("options", [OTHER, ORACLE])
def test_controls_do_not_depend_on_the_batch(embedded, samples, options):
    together = prune(embedded, samples, **options).selection.keep
    for row, sample in enumerate(samples):
        assert torch.equal(prune(embedded, [sample], **options).selection.keep[0], together[row])


def shown(adapter, samples):
    inputs = Session(adapter).prepare(samples).inputs
    view = Encoding(adapter, inputs, Session(adapter).encode(inputs), samples=samples)
    return evidence(Evidence(), view).view(len(samples), 144)


def test_evidence_is_1_at_what_is_asked_about(embedded, samples):
    found = shown(embedded, samples)
    for row, sample in enumerate(samples):
        wanted = torch.zeros(144)
        wanted[evidence_tokens(sample.boxes, picture_size(sample.turn), (12, 12))] = 1
        assert torch.equal(found[row], wanted)
    assert 0 < found.sum() < 6 * 144


def test_the_oracle_keeps_the_evidence_first(embedded, samples):
    keep = prune(embedded, samples, **ORACLE).selection.keep
    found = shown(embedded, samples)
    for row in range(6):
        kept, there = int(found[row, keep[row]].sum()), int(found[row].sum())
        assert kept >= min(there, 16) - 1  # one that the others span adds nothing
    nothing = [Sample.of(only_picture(samples[0].turn), "why ?", id="a")]
    plain = prune(embedded, nothing, conditioning="none").selection.order
    assert torch.equal(prune(embedded, nothing, **ORACLE).selection.order, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [(OTHER, "relevance to another question needs a task"), (ORACLE, "signal evidence needs the samples")],
)
def test_without_samples_controls_are_refused(embedded, samples, options, message):
    with pytest.raises(ModelError, match=message):
        prune(embedded, samples, given=None, **options)
    model, processor = embedded.model, embedded.processor
    with (
        tp.prune(model, processor, "cdpruner", keep_tokens=16, **options),
        pytest.raises(ModelError, match=message),
    ):
        model.generate(**Session(embedded).prepare(samples).inputs, max_new_tokens=1)


def test_a_task_that_does_not_know_is_refused_before_anything_is_loaded(samples):
    blank = [Sample.of(Image.new("RGB", (8, 8)), "why ?", id="a")]
    check_samples([create_pruner("cdpruner", **OTHER), create_pruner("cdpruner", **ORACLE)], samples)
    check_samples([create_pruner("cdpruner"), create_pruner("random")], blank)
    with pytest.raises(ModelError, match="conditioning oracle needs a task that says where"):
        check_samples([create_pruner("cdpruner", **ORACLE)], blank)
    with pytest.raises(
        ModelError, match="relevance to another question needs a task whose samples come with another question"
    ):
        check_samples([create_pruner("cdpruner", **OTHER)], blank)


def test_rows_that_are_parts_of_pictures_are_refused():
    family = families("llava_next")["llava_next"]
    model, processor = family.build("sdpa")
    adapter, inputs = adapter_for(model, processor), family.ask(processor, 1)
    samples = [Sample.of(Image.new("RGB", (80, 80)), "why ?", id="a", boxes=((0, 0, 9, 9),))]
    with pytest.raises(ModelError, match="conditioning oracle needs prompts of one image whose visual tokens are one"):
        Session(adapter).prune_inputs(inputs, create_pruner("cdpruner", **ORACLE), K, samples=samples)
    model, processor = shared_llava("sdpa")
    two = ask(processor, 2)
    with pytest.raises(ModelError, match="prompts of one image"):
        session_for(model, processor).prune_inputs(two, create_pruner("cdpruner", **ORACLE), K, samples=samples)
