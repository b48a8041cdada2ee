"""Every pruner keeps the contract: those of this package, and those that others registered."""

from tokenprune.pruners.base import PRUNERS
from tokenprune.testing import PrunerContract

OTHERWISE = {
    "tome": {"merges": True},
    "globalcom2": {"unmerged": {"order": "raster"}},
    "mustdrop": {"grid_only": True, "merges": True},
    "prumerge": {"merges": True},
    "vscan": {"grid_only": True, "merges": True},
    "prunesid": {"merges": True},  # CLS enters
    "holov": {"unmerged": {"order": "raster"}},
    "trim": {"merges": True},
    "hiprune": {"grid_only": True},
    "visionzip": {"merges": True},
    "pooling": {"grid_only": True, "merges": True},
    "resize": {"grid_only": True, "merges": True},
    "sparsevlm": {"unmerged": {"recycle": False}},  # the golden case has it with what is merged, end to end
}

for _name in PRUNERS.names():
    if _name == "none":  # it drops nothing, see test_none
        continue
    _title = "Test" + _name.title().replace("_", "")
    _own = {"pruner": _name, "__module__": __name__, **OTHERWISE.get(_name, {})}
    globals()[_title] = type(_title, (PrunerContract,), _own)
