"""Every family of every adapter keeps the contract; see ``tokenprune.testing.families`` for how a new one joins."""

import pytest

from tokenprune.adapters.registry import ADAPTERS
from tokenprune.testing import AdapterContract
from tokenprune.testing.families import families

for _name, _family in families().items():
    _title = "Test" + _name.title().replace("_", "")
    globals()[_title] = type(_title, (AdapterContract,), {"family": _family, "__module__": __name__})


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_it_has_a_tiny_model(adapter):
    assert families(adapter), f"add tokenprune/testing/families/{adapter}.py with FAMILIES"
