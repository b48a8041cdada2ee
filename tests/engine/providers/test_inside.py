"""What a pruner is given at a stage inside the LLM, against the same worked out row by row without padding."""

import dataclasses

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import (
    ImageEmbeds,
    Keys,
    NormedHidden,
    RopeSimilarity,
    TextAttention,
    TextEmbeds,
    TextKeys,
    TextMask,
    TextNormedHidden,
)
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.testing.families.base import dense
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.masked_layers import layer_loop, llava_embeds
from tokenprune.testing.pruners import Within

IMAGES, KEEP = (1, 2, 0), 10
ALL = (
    TextAttention,
    TextMask,
    TextEmbeds,
    ImageEmbeds,
    Keys,
    TextKeys,
    NormedHidden,
    TextNormedHidden,
    RopeSimilarity,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spy(Within):
    """Remembers what it is given."""

    layers: tuple[int, ...] = (1, 3)
    rows: str = "all"
    asked: tuple = ALL
    given: list = dataclasses.field(default_factory=list)

    @property
    def requires(self):
        return frozenset({self.attention, *(self.of(kind) for kind in self.asked)})

    def of(self, kind):
        """A signal of a kind, of the layer and the text rows that this one reads."""
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: value for name, value in vars(self.attention).items() if name in known})

    def score(self, tokens):
        self.given.append(tokens)
        return super().score(tokens)


def given_to(spy, model, processor):
    """Inputs, the stages, and for each stage its visual tokens by the number of images of their rows."""
    inputs = ask(processor, *IMAGES)
    with tp.prune(model, processor, spy, keep_tokens=KEEP) as trace:
        model.generate(**inputs, max_new_tokens=1)
    return inputs, trace.stages, [spy.given[:2], spy.given[2:]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spy", [Spy(), Spy(own=True), Spy(rows="last")], ids=["previous", "own", "last"])
def test_signals(attention, spy):
    model, processor = shared_llava(attention)
    spy = dataclasses.replace(spy, given=[])
    inputs, stages, seen = given_to(spy, model, processor)
    for row in (0, 1):
        for number, stage in enumerate(stages):
            tokens, wanted = seen[number][row], by_hand(spy, inputs, row, stages[:number], stage.stage.layer)
            assert tokens.signals.keys() == {str(signal) for signal in spy.requires}
            assert tokens.batch_size == 1
            torch.testing.assert_close(tokens.features, wanted.pop("features"), atol=1e-4, rtol=1e-4)
            for name, value in wanted.items():
                torch.testing.assert_close(tokens.signal(spy.of(name)), value, atol=1e-4, rtol=1e-4, msg=str(name))


def by_hand(spy, inputs, row, before, layer):
    """Features and signals of one row at the input of a layer."""
    model, _ = shared_llava("eager")
    decoder, mask = model.get_decoder(), inputs["attention_mask"][row].bool()
    x, visual = llava_embeds(model)(inputs)[row][mask], inputs["input_ids"][row][mask] == model.config.image_token_id
    scoring, seen = layer if spy.own else layer - 1, {}
    handles = [
        decoder.layers[layer].register_forward_pre_hook(lambda m, args: seen.update(hidden=args[0])),
        decoder.layers[scoring].register_forward_pre_hook(lambda m, args: seen.update(entered=args[0])),
        decoder.layers[scoring].self_attn.register_forward_hook(lambda m, args, out: seen.update(weights=out[1])),
    ]
    with torch.no_grad():
        drops = [(stage.stage.layer, stage.keep[row]) for stage in before]
        layer_loop(model, x, visual, dense(row, len(x)), drops, ["original"] * len(drops))
        alive = visual.nonzero()[:, 0]
        alive = alive[before[-1].keep[row]] if before else alive
        text = torch.arange(int(alive.max()) + 1, len(x))
        text = text[~visual[text]] if spy.rows == "all" else text[-1:]
        module = decoder.layers[scoring]
        heads = module.self_attn.k_proj(module.input_layernorm(seen["entered"])).view(1, len(x), -1, 16).transpose(1, 2)
        rotation = decoder.rotary_emb(x[None], torch.arange(len(x))[None])
        _, keys = apply_rotary_pos_emb(heads, heads, *rotation)
        keys = keys.transpose(1, 2).flatten(2)
        ones, _ = apply_rotary_pos_emb(torch.ones(1, 1, len(x), 16), torch.ones(1, 1, len(x), 16), *rotation)
        normed = decoder.norm(seen["hidden"])
    for handle in handles:
        handle.remove()
    return {
        "features": seen["hidden"][:, alive],
        TextAttention: seen["weights"][:, :, text][..., alive],
        TextMask: torch.ones(1, len(text), dtype=torch.bool),
        TextEmbeds: x[None, text],
        ImageEmbeds: x[None, visual],
        Keys: keys[:, alive],
        TextKeys: keys[:, text],
        NormedHidden: normed[:, alive],
        TextNormedHidden: normed[:, text],
        RopeSimilarity: ones[:, 0, text] @ ones[:, 0, alive].mT / 4,  # width 16 of a head
    }


def test_row_ids_tell_the_images_of_a_row_and_their_order(llava):
    model, processor = llava
    adapter, spy = adapter_for(model, processor), Spy(layers=(1,))

    def ids(inputs):
        spy.given.clear()
        Session(adapter).prefill(Session(adapter).prune_inputs(inputs, spy, Budget(keep_tokens=KEEP)))
        return torch.cat([tokens.content_ids() for tokens in spy.given]).tolist()

    batch, both = ask(processor, 1, 1), ask(processor, 2)
    images = Session(adapter).visual_tokens(batch, frozenset()).content_ids().tolist()
    assert ids(batch) == images
    swapped = {**both, "pixel_values": both["pixel_values"].flip(0)}
    assert len({*images, *ids(both), *ids(swapped)}) == 4
    assert ids(ask(processor, 2, 1))[0] == ids(both)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Three(Within):
    """Keeps three tokens of whatever row."""

    adaptive: bool = True

    def _select(self, tokens, k):
        return super()._select(tokens, 3)


def test_rows_that_have_become_alike_are_told_apart_by_what_they_were(llava):
    """Three tokens are left of one image and of two; the image embeddings are still those of all."""
    model, processor = llava
    spy = Spy(layers=(2,))
    with tp.prune(model, processor, [Three(layers=(1,)), spy], keep_tokens=KEEP) as trace:
        model.generate(**ask(processor, *IMAGES), max_new_tokens=1)
    assert [stage.counts for stage in trace.stages] == [[3, 3, 0]] * 2
    assert [tokens.signals[ImageEmbeds()].shape[:2] for tokens in spy.given] == [(1, 25), (1, 50)]


def test_text_that_is_padded(llava):
    """Rows of one group: the padding comes first, the last is real."""
    model, processor = llava
    spy, inputs = Spy(layers=(1,)), ask(processor, 1, 1)
    with tp.prune(model, processor, spy, keep_tokens=KEEP):
        model.generate(**inputs, max_new_tokens=1)
    (tokens,), image = spy.given, model.config.image_token_id
    lengths = [int(row.flip(0).eq(image).long().argmax()) for row in inputs["input_ids"]]
    assert lengths[0] < lengths[1]
    short = lengths[1] - lengths[0]
    assert tokens.signal(TextMask("all")).tolist() == [[False] * short + [True] * lengths[0], [True] * lengths[1]]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for row, length in enumerate(lengths):
        assert torch.equal(tokens.signal(TextEmbeds("all"))[row, -length:], embeds[row, -length:])


def test_a_prompt_that_ends_with_its_image(llava):
    model, processor = llava
    inputs = ask(processor, 1)
    ids = inputs["input_ids"]
    end = int((ids[0] == model.config.image_token_id).nonzero().max()) + 1
    ends = {"input_ids": ids[:, :end], "pixel_values": inputs["pixel_values"]}
    with tp.prune(model, processor, Within(), keep_tokens=KEEP), pytest.raises(ModelError, match="ends with its image"):
        model.generate(**ends, max_new_tokens=1)
    with tp.prune(model, processor, tp.create_pruner("random", layer=1), keep_tokens=KEEP) as trace:
        model.generate(**ends, max_new_tokens=1)  # reads no text
    assert trace.counts == [(25, KEEP)]
