"""FLOPs and cache of the published models from their sizes alone, beside the figures that papers print.

    python benchmarks/paper_flops.py

Nothing is measured and no weights are needed. ``published`` holds what the papers print; all else is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from tokenprune.core.budget import Budget
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.costs.model_card import load_card
from tokenprune.pruners.base import Pruner, create_pruner

MODELS = ("llava-1.5-7b", "llava-1.5-13b", "llava-next-7b", "llava-next-13b", "qwen2.5-vl-7b", "internvl3-8b")
TEXT = 135  # tokens: 35 of the system prompt and 100 of the question, as GSOP counts
SHARES = (Fraction(2, 9), Fraction(1, 9))  # of the visual tokens: 640 and 320 of 2880
DEPTHS = ((Fraction(3, 4), Fraction(1, 2)), (Fraction(5, 8), Fraction(3, 8)), (Fraction(1, 2), Fraction(1, 4)))
TERA, MIB = 1e12, 2**20

# CDPruner's efficiency table, LLaVA-NeXT on POPE: method, options, average tokens, TFLOPs and cache in MB.
EFFICIENCY = {
    "llava-next-7b": (
        ("unpruned", None, 2880, 41.7, 1440.0),
        ("fastv", {"layer": 2}, 320, 4.4, 160.3),
        ("pyramiddrop", {"layers": (2, 6, 15)}, 320, 4.5, 160.2),
        ("sparsevlm", {}, 320, 4.5, 161.2),
        ("divprune", {}, 320, 4.2, 160.0),
        ("cdpruner", {}, 320, 4.2, 160.0),
        ("cdpruner", {}, 160, 2.09, None),
    ),
    "llava-next-13b": (
        ("unpruned", None, 2880, 79.9, 2250.0),
        ("fastv", {"layer": 2}, 320, 8.5, 250.8),
        ("pyramiddrop", {"layers": (2, 6, 15)}, 320, 8.5, 250.7),
        ("sparsevlm", {}, 320, 8.5, 254.8),
        ("divprune", {}, 320, 8.2, 250.0),
        ("cdpruner", {}, 320, 8.2, 250.0),
    ),
}


def plan_of(spec: ModelSpec, pruner: Pruner | None, budget: Budget | None) -> OperationPlan:
    """What a pruner leaves of the model's visual tokens."""
    total = spec.visual_tokens
    if pruner is None or budget is None:
        return OperationPlan.drop_at(spec, (), (), total)
    return pruner.plan(spec, pruner.alive(spec, pruner.schedule(spec, budget, total), total), total)


def tera(spec: ModelSpec, plan: OperationPlan, convention: str, text: int) -> float:
    """TFLOPs of the decoder layers' prefill."""
    return CONVENTIONS[convention].prefill(spec, plan, text) / TERA


def models() -> Iterable[Sequence[str]]:
    """Unpruned, uniform pruning before the LLM, and DOP at the FLOPs of uniform pruning to a ninth."""
    yield ("model", "plan", "tokens", "average", "exact", "gsop", "of unpruned, exact", "tower and projector")
    for name in MODELS:
        spec = load_card(name).spec
        total, layers, uniform = spec.visual_tokens, spec.llm.layers, create_pruner("uniform")
        around = f"{(vision_flops(spec) + projector_flops(spec)) / TERA:.2f}"
        whole = plan_of(spec, None, None)
        budgets = [Budget(keep_tokens=round(share * total)) for share in SHARES]
        plans = [("unpruned", total, whole)]
        plans += [("uniform", b.resolve(total), plan_of(spec, uniform, b)) for b in budgets]
        limit = Budget(flops=plans[-1][2].prefill_flops(spec.llm, TEXT), text_tokens=TEXT)
        for attention, mlp in ((round(a * layers), round(m * layers)) for a, m in DEPTHS):
            dop = create_pruner("dop", base="uniform", attention_depth=attention, mlp_depth=mlp)
            label = f"dop, attention {attention}, MLP {mlp}"
            plans.append((label, dop.schedule(spec, limit, total)[0], plan_of(spec, dop, limit)))
        for label, tokens, plan in plans:
            exact, gsop = (tera(spec, plan, convention, TEXT) for convention in ("exact", "gsop"))
            share = 100 * exact / tera(spec, whole, "exact", TEXT)
            yield (
                name,
                label,
                str(tokens),
                f"{plan.mean_tokens:.4g}",
                f"{exact:.2f}",
                f"{gsop:.2f}",
                f"{share:.1f} %",
                around,
            )


def reductions() -> Iterable[Sequence[str]]:
    """DOP's published reductions on LLaVA-NeXT-7B, for several lengths of the text."""
    yield ("text tokens", "640 tokens: less by %", "published", "320 tokens: less by %", "published")
    spec, uniform = load_card("llava-next-7b").spec, create_pruner("uniform")
    for text in (0, 40, 100, 128, 135):
        whole = tera(spec, plan_of(spec, None, None), "gsop", text)
        kept = (tera(spec, plan_of(spec, uniform, Budget(keep_tokens=n)), "gsop", text) for n in (640, 320))
        more, less = (f"{100 * (1 - part / whole):.1f}" for part in kept)
        yield (str(text), more, "77", less, "86")


def grid() -> Iterable[Sequence[str]]:
    """Most visual tokens that DOP's depths leave within the FLOPs of 320 uniform tokens on LLaVA-NeXT-7B."""
    spec, depths = load_card("llava-next-7b").spec, (32, 24, 20, 16, 12, 8, 4)
    limit = Budget(
        flops=plan_of(spec, create_pruner("uniform"), Budget(keep_tokens=320)).prefill_flops(spec.llm, TEXT),
        text_tokens=TEXT,
    )
    yield ("attention", *(f"MLP {depth}" for depth in depths))
    for attention in (32, 28, 24, 20, 16, 12):
        pruners = [create_pruner("dop", base="uniform", attention_depth=attention, mlp_depth=mlp) for mlp in depths]
        kept = [pruner.schedule(spec, limit, spec.visual_tokens)[0] for pruner in pruners]
        yield (str(attention), *(str(n) if mlp <= attention else "–" for n, mlp in zip(kept, depths, strict=True)))


def efficiency() -> Iterable[Sequence[str]]:
    """CDPruner's table in its own convention: visual tokens alone, MiB of half precision."""
    yield (
        "model",
        "method",
        "average tokens",
        "TFLOPs",
        "published",
        "difference",
        "KV, MiB",
        "published",
        "difference",
    )
    for name, rows in EFFICIENCY.items():
        spec = load_card(name).spec
        for method, options, average, flops, cache in rows:
            pruner = None if options is None else create_pruner(method, **options)
            plan = plan_of(spec, pruner, Budget(average_tokens=average))
            ours = tera(spec, plan, "cdpruner", 0)
            memory = sum(planned_kv_bytes_by_layer(spec, plan, 0, 2)) / MIB
            label = " ".join([method, *(f"{k}={v}" for k, v in (options or {}).items())])
            bytes_ = ("–", "–") if cache is None else (f"{cache:.1f}", f"{100 * (memory / cache - 1):+.1f} %")
            yield (
                *(
                    name,
                    label,
                    f"{plan.mean_tokens:.4g}",
                    f"{ours:.2f}",
                    f"{flops:g}",
                    f"{100 * (ours / flops - 1):+.1f} %",
                ),
                *(f"{memory:.1f}", *bytes_),
            )


def singles() -> Iterable[Sequence[str]]:
    """Figures of other papers, each in its own convention."""
    yield ("paper", "model", "visual + text tokens", "convention", "TFLOPs", "published")
    for paper, tokens, text, convention, published in (
        ("FastV", 576, 40, "fastv", "3.20"),
        ("SparseVLM", 576, 40, "sparsevlm", "4.09"),
        ("GSOP", 576, 135, "gsop", "9.474"),
        ("CDPruner", 576, 0, "cdpruner", "7.63"),
        ("CDPruner", 128, 0, "cdpruner", "1.67"),
        ("CDPruner", 64, 0, "cdpruner", "0.83"),
        ("CDPruner", 32, 0, "cdpruner", "0.42"),
    ):
        spec = load_card("llava-1.5-7b").spec
        ours = tera(spec, plan_of(spec, create_pruner("uniform"), Budget(keep_tokens=tokens)), convention, text)
        yield (paper, "llava-1.5-7b", f"{tokens} + {text}", convention, f"{ours:.3f}", published)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first row is the header."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print all tables."""
    for part in (models, reductions, grid, efficiency, singles):
        print(f"{(part.__doc__ or '').strip()}\n\n{markdown(part())}\n")


if __name__ == "__main__":
    main()
