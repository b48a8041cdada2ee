"""A bias on the keys of tokens that stay: in the prefill, in decoding, from the stage on."""

from dataclasses import dataclass

import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.masked_layers import masked_layers_logits

DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 9}


@dataclass(frozen=True, kw_only=True)
class Weighing(tp.Pruner):
    """Keeps the first tokens and lets each weigh by its place."""

    layer: int | None = 2
    strength: float = 2.0

    def stages(self, spec):
        return (PRE_LLM if self.layer is None else decoder(self.layer),)

    def _select(self, tokens, k):
        keep = torch.arange(k).expand(tokens.batch_size, -1)
        return tp.TokenSelection(keep, tokens.num_tokens, bias=self.strength * (keep % 3).float())


def by_hand(trace, strength, rows):
    """What ``Weighing`` adds to each visual token of each row."""
    biases = []
    for row, images in enumerate(rows):
        bias = torch.zeros(25 * images)
        keep = trace.stages[0].keep[row]
        bias[keep] = strength * (torch.arange(len(keep)) % 3).float()
        biases.append(bias)
    return biases


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize(("layer", "rows"), [(None, (1, 1)), (1, (1,)), (1, (1, 2)), (2, (1, 2))], ids=str)
def test_it_is_added_from_its_stage_on(attention, rows, layer, positions):
    model, processor = shared_llava(attention)
    inputs, logits = ask(processor, *rows), {}
    for strength in (2.0, 0.0):
        pruner = Weighing(layer=layer, positions=positions, strength=strength)
        with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
            out = model.generate(**inputs, **DETAILS)
        tokens, logits[strength] = out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)
        biases = {layer or 0: by_hand(trace, strength, rows)}
        wanted = masked_layers_logits(model, inputs, trace.stages, [positions], tokens, biases=biases)
        torch.testing.assert_close(logits[strength], wanted, atol=1e-4, rtol=0)
    assert not torch.allclose(logits[2.0], logits[0.0], atol=1e-3)


def test_what_a_later_stage_reads_has_it():
    """A layer's attention, as a stage behind it sees it, is what it was with the bias."""
    model, processor = shared_llava("eager")
    inputs, seen = ask(processor, 1), []

    @dataclass(frozen=True, kw_only=True)
    class Reads(tp.Pruner):
        requires = frozenset({tp.signals.TextAttention()})

        def stages(self, spec):
            return (decoder(3),)

        def _select(self, tokens, k):
            seen.append(tokens.signal(tp.signals.TextAttention()))
            return tp.TokenSelection(torch.arange(k)[None], tokens.num_tokens)

    with tp.prune(model, processor, [Weighing(), Reads()], keep_tokens=5), torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions[2]
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0, 0]
    kept = seen[0].shape[-1]
    torch.testing.assert_close(seen[0][0, :, 0], attention[0, :, -1, visual : visual + kept], atol=1e-6, rtol=1e-5)


def test_bad_biases_are_refused():
    keep = torch.tensor([[0, 1]])
    with pytest.raises(tp.TokenPruneError, match=r"bias must be \(1, 2\), got \(1, 3\)"):
        tp.TokenSelection(keep, 3, bias=torch.zeros(1, 3))
    with pytest.raises(tp.TokenPruneError, match="bias must be finite"):
        tp.TokenSelection(keep, 3, bias=torch.tensor([[0.0, -torch.inf]]))


def test_operations_are_refused_with_it():
    model, processor = shared_llava("sdpa")
    with (
        tp.prune(model, processor, "dop", base=Weighing(layer=None), mlp_depth=2, keep_tokens=5),
        pytest.raises(ModelError, match="operation pruning cannot be combined with a bias on keys"),
    ):
        model(**ask(processor, 1))
