import subprocess
import sys

import pytest

import tokenprune as tp


def test_public_names():
    assert set(tp.__all__) == {
        "Attached",
        "Budget",
        "ModelAdapter",
        "ModelSpec",
        "OperationPlan",
        "Pruner",
        "Quota",
        "ScorePruner",
        "Signal",
        "Stage",
        "TokenPruneError",
        "TokenSelection",
        "Trace",
        "UnprunedWarning",
        "VisualTokens",
        "__version__",
        "attach",
        "create_pruner",
        "load_embedded",
        "provides",
        "prune",
        "prune_vit",
        "register_adapter",
        "register_pruner",
        "signals",
        "stages",
    }
    assert all(getattr(tp, name) is not None for name in tp.__all__)
    assert sorted(tp.__all__) == dir(tp)
    with pytest.raises(AttributeError, match="prunner"):
        _ = tp.prunner


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, tokenprune; sys.exit(bool({'torch', 'transformers', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
