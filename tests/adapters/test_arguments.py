"""What decoders and their layers are given. A version of transformers that gives more, or less, is told of here."""

import pytest
import transformers

from tokenprune.adapters.cache_argument import CACHE
from tokenprune.engine.decoder.arguments import named
from tokenprune.testing.families import families

FAMILIES = families()
COMMON = {"attention_mask", "position_ids", CACHE}
# The hooks shorten what is aligned with the tokens, and pass on the rest: these are not aligned with them.
UNALIGNED = {"use_cache", "image_sizes", "logits_to_keep", "output_hidden_states", "output_attentions", "return_dict"}
GIVEN = {
    "decoder": (COMMON | {"inputs_embeds"}, UNALIGNED | {"visual_pos_masks", "deepstack_visual_embeds"}),
    "layer": (COMMON | {"hidden_states", "position_embeddings"}, UNALIGNED),
    "self_attn": ({"hidden_states", "position_embeddings", "attention_mask", CACHE}, COMMON | UNALIGNED),
}


def received(family):
    """Names of the arguments in prefill and decoding, by module."""
    model, processor = family.build("sdpa")
    decoder = model.get_decoder()
    modules = {"decoder": decoder, "layer": decoder.layers[-1], "self_attn": decoder.layers[-1].self_attn}
    names = {name: [] for name in modules}

    def note(name):
        return lambda module, args, kwargs: names[name].append(
            {key for key, value in named(module, args, kwargs).items() if value is not None or key == "attention_mask"}
        )

    handles = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        model.generate(**family.ask(processor, 1, 2), max_new_tokens=2)
    finally:
        for handle in handles:
            handle.remove()
    return names


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_unknown_reaches_the_layers(name):
    for module, calls in received(FAMILIES[name]).items():
        needed, allowed = GIVEN[module]
        assert len(calls) == 2
        for given in calls:
            where = f"transformers {transformers.__version__} calls the {module} of {name}"
            more, missing = given - needed - allowed, needed - given
            assert not more, f"{where} with {more}: if it is aligned with the tokens, the hooks must shorten it"
            assert not missing, f"{where} without {missing}, which the hooks read"
