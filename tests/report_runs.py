"""Records and answers that nobody computed: rows of a run whose numbers are known."""

from tokenprune.sweeps.provenance import Provenance
from tokenprune.sweeps.store import RunFolder, RunRecord

GRID = (12, 12)
TOTAL = 144
QUESTIONS = 4
TASK = {"name": "scenes", "split": "test", "num_samples": QUESTIONS, "seed": 0}


def record(label, kept, accuracy, *, pruner=None, model="embedded", task=TASK, budget=None, seed=0, **metrics):
    """A finished cell; ``kept`` visual tokens cost 4 million FLOPs each."""
    pruner = pruner or {"name": label.split()[0]}
    unpruned = label == "none"
    config = {"model": {"name": model, "path": None}, "task": task, "max_new_tokens": 4, "timing_repeats": 1}
    values = {
        "questions": QUESTIONS,
        "accuracy": accuracy,
        "accuracy_standard_error": 0.02,
        "accuracy_by_kind": {"color": accuracy, "count": accuracy / 2},
        "retention": accuracy / 0.95,
        "visual_tokens": TOTAL,
        "kept_tokens": float(kept),
        "average_tokens": float(kept),
        "evidence_kept": kept / TOTAL,
        "llm_prefill_flops": 4e6 * kept,
        "prefill_time_ratio": kept / TOTAL,
        "kv_cache_bytes": 8192.0 * kept,
    }
    return RunRecord(
        run="r",
        cell=f"{model}-{task['seed']}-{label}-{kept}",
        label=label,
        pruner=pruner,
        budget={} if unpruned else budget or {"keep_tokens": kept},
        config=config,
        provenance=Provenance(code="c", git="abc", versions={"torch": "2"}, device="cpu", model="m", data="d"),
        seed=seed,
        status="ok",
        metrics=values | metrics,
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
    )


def random(kept, accuracy, seed):
    label = f"random seed={seed}" if seed else "random"
    return record(label, kept, accuracy, pruner={"name": "random", "seed": seed}, seed=seed)


def rbf(kept, accuracy, **changes):
    return record("cdpruner kernel=rbf", kept, accuracy, pruner={"name": "cdpruner", "kernel": "rbf"}, **changes)


def usual():
    """No pruning, random with three seeds, and CDPruner, with 48 and 16 tokens."""
    return [
        record("none", TOTAL, 0.95),
        *(random(48, accuracy, seed) for seed, accuracy in enumerate((0.7, 0.6, 0.8))),
        *(random(16, accuracy, seed) for seed, accuracy in enumerate((0.4, 0.5, 0.6))),
        rbf(48, 0.9),
        rbf(16, 0.72),
    ]


def answers(item, samples, step=2):
    """Every ``step``-th question is answered rightly, and tokens are kept from one end or the other."""
    kept = int(item.metrics["kept_tokens"])
    start = 20 if item.label.startswith("random") else 0
    keep = [] if item.label == "none" else list(range(start, start + kept))
    for index, sample in enumerate(samples):
        right = index % step == 0
        yield {
            "cell": item.cell,
            "sample": sample.id,
            "kind": sample.kind,
            "question": sample.question,
            "truth": sample.answer,
            "answer": sample.answer if right else "a long wrong answer",
            "correct": float(right),
            "visual_tokens": TOTAL,
            "grid": list(GRID),
            "stages": [{"stage": "pre_llm", "kept": keep, "tokens": kept}] if keep else [],
        }


def leave(path, records, samples=()):
    """Write a folder as a run would."""
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    for number, item in enumerate(records):
        folder.results.append(item.to_mapping())
        if item.status == "ok" and samples:
            folder.samples.append(*answers(item, samples, step=2 + number % 3))
    return folder
