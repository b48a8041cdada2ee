"""How papers count the FLOPs of a prefill. They differ by up to 2.6 times for the same work, so each has a name.

A layer with n tokens, width d and an MLP of width m costs, with one FLOP for a multiply-add:

- FastV, DivPrune: 4nd^2 + 2n^2d + 2ndm. Its MLP has two matrices, that of LLaMA has three.
- SparseVLM: 4nd^2 + 2n^2d + 3ndm.
- CDPruner: twice SparseVLM's, of the visual tokens alone.
- GSOP, by DOP's authors: twice SparseVLM's, with keys and values (2nd^2) charged to the tokens that give them, and
  queries and outputs (2nd^2) to those that ask.

Only GSOP tells the three operations apart. Where a plan does, the others are charged as GSOP charges them; for pruning
of tokens it makes no difference. None of them knows grouped queries, or heads that are not as wide together as the
model (Gemma, Qwen3, Mistral Small); ``exact`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.registry import enter
from tokenprune.core.sizes import ModelSpec, TransformerSpec


@dataclass(frozen=True)
class Convention:
    """A way to count the FLOPs of a layer.

    Attributes:
        layer: FLOPs of one layer from its sizes and the tokens that give keys and values, ask, and pass the MLP.
        counts: what it counts, in a few words.
        text: whether text counts, or visual tokens alone.
    """

    layer: Callable[[TransformerSpec, int, int, int], int]
    counts: str
    text: bool = True

    def prefill(self, spec: ModelSpec, plan: OperationPlan, text_tokens: int) -> int:
        """FLOPs of the decoder layers for one prompt; arguments as of ``flops.llm_prefill_flops``."""
        text = text_tokens if self.text else 0
        total = 0
        for layer in range(spec.llm.layers):
            tokens = (text + plan.tokens(layer, operation) for operation in Operation)
            total += self.layer(spec.llm, *tokens)
        return total


def exact(llm: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """FLOPs of a layer as the hardware multiplies."""
    return llm.layer_flops(sources, receivers, mlp)


def sparsevlm(llm: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """FLOPs of a layer as SparseVLM counts: multiply-adds of a LLaMA without grouped queries."""
    return _attention(llm, sources, receivers) + 3 * mlp * llm.width * llm.mlp_width


def fastv(llm: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """FLOPs of a layer as FastV counts: multiply-adds, as if the MLP had two matrices."""
    return _attention(llm, sources, receivers) + 2 * mlp * llm.width * llm.mlp_width


def gsop(llm: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """FLOPs of a layer as GSOP counts: two per multiply-add."""
    return 2 * sparsevlm(llm, sources, receivers, mlp)


def cdpruner(llm: TransformerSpec, sources: int, receivers: int, mlp: int) -> int:
    """FLOPs of a layer as CDPruner counts: two per multiply-add; the convention counts visual tokens alone."""
    return 2 * sparsevlm(llm, sources, receivers, mlp)


def _attention(llm: TransformerSpec, sources: int, receivers: int) -> int:
    return 2 * (sources + receivers) * llm.width**2 + 2 * sources * receivers * llm.width


CONVENTIONS: dict[str, Convention] = {
    "exact": Convention(exact, "2 a multiply-add, grouped queries, text"),
    "gsop": Convention(gsop, "2 a multiply-add, text"),
    "cdpruner": Convention(cdpruner, "2 a multiply-add, visual tokens alone", text=False),
    "sparsevlm": Convention(sparsevlm, "1 a multiply-add, text"),
    "fastv": Convention(fastv, "1 a multiply-add, MLP of two matrices, text"),
}


Layer = Callable[[TransformerSpec, int, int, int], int]


def register_convention(name: str, counts: str, *, text: bool = True) -> Callable[[Layer], Layer]:
    """Decorator of a function of one layer that makes a convention known to ``tokenprune flops``.

    Args:
        name: public name.
        counts: what it counts, in a few words.
        text: whether text counts, or visual tokens alone.

    Raises:
        RegistryError: if the name is malformed or taken.
    """

    def register(layer: Layer) -> Layer:
        enter("convention", CONVENTIONS, name, Convention(layer, counts, text))
        return layer

    return register
