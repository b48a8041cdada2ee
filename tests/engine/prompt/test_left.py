"""What selections that are ragged, fold or reorder do to a model, before the LLM and inside it."""

import dataclasses

import pytest
import torch

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.engine.loading import session_for
from tokenprune.testing.checks import check_masking
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruners import Project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uneven(Project):
    """Keeps between half of the budget and all of it, by what a row shows."""

    layer: int | None = None
    positions: str = "original"

    def stages(self, spec):
        return (PRE_LLM if self.layer is None else decoder(self.layer),)

    def _select(self, tokens, k):
        score = self.score(tokens)
        rank = score.argsort(1, descending=True).argsort(1)
        number = (k // 2 + tokens.content_ids() % (k - k // 2 + 1)).clamp(min=1)
        return tp.TokenSelection.from_mask(rank < number[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folding(Project):
    """Folds every token into the kept one before it, or the first."""

    layer: int | None = None

    def stages(self, spec):
        return (PRE_LLM if self.layer is None else decoder(self.layer),)

    def _select(self, tokens, k):
        chosen = super()._select(tokens, k)
        at = torch.searchsorted(chosen.keep, torch.arange(tokens.num_tokens).expand(len(chosen.keep), -1), right=True)
        return tp.TokenSelection(chosen.keep, tokens.num_tokens, into=chosen.keep.gather(1, (at - 1).clamp(min=0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backwards(Project):
    """Keeps what ``Project`` keeps, the last first."""

    def _select(self, tokens, k):
        keep = super()._select(tokens, k).keep
        return tp.TokenSelection(keep, tokens.num_tokens, sequence=keep.flip(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_next"])
def test_rows_that_keep_different_numbers(name, layer, attention):
    family = families()[name]
    model, processor = family.build(attention)
    trace = check_masking(family, model, processor, family.ask(processor, 1, 2), Uneven(layer=layer), keep_tokens=9)
    assert len({len(kept) for kept in trace.stages[-1].keep}) == 2


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_folding_before_the_llm(name):
    family = families()[name]
    model, processor = family.build("sdpa")
    session, inputs = session_for(model, processor), family.ask(processor, 1)
    pruned = session.prune_inputs(inputs, Folding(), Budget(keep_tokens=5))
    selection, whole = pruned.selection, session.encode(inputs)
    output = pruned.inputs["mm_encoder_outputs"]["image"]
    made = torch.cat([part.reshape(-1, whole.features.shape[1]) for part in output.pooler_output])
    units = torch.stack(whole.layout.units)
    for level, found in [
        (whole.features, made),
        *zip(
            (torch.cat(list(x)) for x in getattr(whole.outputs["image"], "deepstack_features", ())),
            (torch.cat(list(x)) for x in getattr(output, "deepstack_features", ())),
            strict=True,
        ),
    ]:
        rows = level[units]
        for row, (tokens, into, keep) in enumerate(zip(rows, selection.into, selection.keep, strict=True)):
            wanted = torch.stack([tokens[into == each].mean(0) for each in keep])
            torch.testing.assert_close(found.view(len(rows), 5, -1)[row], wanted, atol=1e-5, rtol=1e-4)


def test_folding_inside_the_llm():
    model, processor = shared_llava("sdpa")
    session, inputs, seen = session_for(model, processor), ask(processor, 1), {}
    pruned = session.prune_inputs(inputs, Folding(layer=2), Budget(keep_tokens=5))
    layers = model.get_decoder().layers
    handles = [
        layers[1].register_forward_hook(lambda module, args, out: seen.update(before=out)),
        layers[2].register_forward_hook(lambda module, args, kwargs, out: seen.update(after=args[0]), with_kwargs=True),
    ]
    ran = session.prefill(pruned)
    for handle in handles:
        handle.remove()
    visual = inputs["input_ids"][0] == model.config.image_token_id
    before, keep = seen["before"][0][visual], torch.tensor(ran.stages[0].kept[0])
    groups = torch.searchsorted(keep, torch.arange(25), right=True).sub(1).clamp(min=0)
    wanted = torch.stack([before[groups == group].mean(0) for group in range(5)])
    first = int(visual.nonzero()[0])
    torch.testing.assert_close(seen["after"][0, first : first + 5], wanted, atol=1e-5, rtol=1e-4)


def test_tokens_in_another_order():
    model, processor = shared_llava("sdpa")
    session, inputs = session_for(model, processor), ask(processor, 1, 1)
    pruned = session.prune_inputs(inputs, Backwards(), Budget(keep_tokens=5))
    plain = session.prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    parts = [each.inputs["mm_encoder_outputs"]["image"].pooler_output for each in (pruned, plain)]
    for ours, ascending in zip(*parts, strict=True):
        assert torch.equal(ours, ascending.flip(0))
    for key in ("input_ids", "position_ids"):
        assert torch.equal(pruned.inputs[key], plain.inputs[key])
    own = session.prune_inputs(inputs, Backwards(positions="original"), Budget(keep_tokens=5))
    ascending = plain.inputs["mm_encoder_outputs"]["image"].pooler_output
    for ours, theirs in zip(own.inputs["mm_encoder_outputs"]["image"].pooler_output, ascending, strict=True):
        assert torch.equal(ours, theirs)  # each token has its own position id, so the order is that of these


def test_stages_inside_know_which_token_is_at_which_place():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class First(tp.Pruner):
        def stages(self, spec):
            return (decoder(2),)

        def _select(self, tokens, k):
            seen.append(tokens.labels)
            return tp.TokenSelection(torch.arange(k).expand(tokens.batch_size, -1), tokens.num_tokens)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Told(Backwards):
        def _select(self, tokens, k):
            chosen = super()._select(tokens, k)
            return dataclasses.replace(chosen, labels=chosen.keep)

    seen = []
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    before, within = {"keep_tokens": 6}, {"keep_tokens": 2}
    with tp.prune(model, processor, Told(), **before) as trace, torch.no_grad():
        model(**inputs)
    entered = trace.stages[0].keep
    both = [Told(), First()]
    with tp.prune(model, processor, both, **within) as trace, torch.no_grad():
        model(**inputs)
    first = trace.stages[0].keep
    assert [row.tolist() for row in seen[0]] == [keep[::-1] for keep in first]
    assert [set(row) for row in trace.stages[1].keep] == [set(keep[::-1][:2]) for keep in first]
    assert all(len(keep) == 6 for keep in entered)


def test_groups_of_operations_go_with_their_tokens():
    """Those picked first run everything, wherever they enter the prompt."""
    model, processor = shared_llava("sdpa")
    session, inputs = session_for(model, processor), ask(processor, 1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Ranked(Backwards):
        def _select(self, tokens, k):
            chosen = super()._select(tokens, k)
            return dataclasses.replace(chosen, order=chosen.keep)

    pruner = tp.create_pruner("dop", base=Ranked(), shares=(0.5, 0.5), mlp_depth=(3, 1))
    prompt = session.prune_inputs(inputs, pruner, Budget(keep_tokens=6)).inside.prompt
    assert prompt.group[prompt.visual].tolist() == [1, 1, 1, 0, 0, 0]


def test_segments_of_an_image_that_is_one_row():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Seeing(Project):
        segments: str = "together"

        def _select(self, tokens, k):
            seen.append(tokens)
            return super()._select(tokens, k)

    seen = []
    model, processor = families()["qwen2_5_vl"].build("sdpa")
    session, inputs = session_for(model, processor), families()["qwen2_5_vl"].ask(processor, 1, videos=(1,))
    layout = session.encode(inputs).layout
    pruned = session.prune_inputs(inputs, Seeing(), Budget(keep_tokens=5))
    assert pruned.stage == PRE_LLM
    video = next(tokens for tokens in seen if int(tokens.segment.max()) > 0)
    units = [unit for unit, item in zip(layout.units, layout.items, strict=True) if layout.items.count(item) > 1]
    assert torch.equal(video.features[0], session.encode(inputs).features[torch.cat(units)])
    sizes = video.quota(5).sizes
    assert sum(sizes) == video.num_tokens
    grids = [grid for grid, item in zip(layout.grids, layout.items, strict=True) if layout.items.count(item) > 1]
    height, width = grids[0]
    assert video.place.shape == (video.num_tokens, 3)
    assert video.place[height * width].tolist() == [1, 0, 0]
    assert video.place[width + 1].tolist() == [0, 1, 1]


def test_segments_together_are_what_the_scope_of_the_whole_image_is():
    family = families()["llava_next"]
    model, processor = family.build("sdpa")
    inputs, keep = family.ask(processor, 1), {}
    for scope, segments in (("tile", "apart"), ("tile", "together"), ("image", "apart")):
        with tp.prune(model, processor, "divprune", segments=segments, scope=scope, keep_tokens=12) as trace:
            model.generate(**inputs, max_new_tokens=1)
        keep[scope, segments] = trace.stages[0].keep
    assert keep["tile", "together"] == keep["image", "apart"] != keep["tile", "apart"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Withdraw(Project):
    """Keeps some visual tokens up to a layer, and none behind it."""

    layers: tuple[int, ...] = (1, 3)
    positions: str = "original"

    def stages(self, spec):
        return tuple(map(decoder, self.layers))

    def schedule(self, spec, budget, total):
        return (*[budget.resolve(total)] * (len(self.layers) - 1), 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(2,), (1, 3)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_a_stage_that_keeps_nothing(name, layers, attention):
    family = families()[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, 1, 2)
    trace = check_masking(family, model, processor, inputs, Withdraw(layers=layers), keep_tokens=9)
    assert trace.stages[-1].counts == [len(fixed) for fixed in family.fixed(model, inputs)]
