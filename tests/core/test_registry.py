import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from tokenprune.core.errors import RegistryError
from tokenprune.core.registry import Registry


class Thing:
    """A thing.

    More about it.
    """


def registry(monkeypatch=None, points=()):
    if monkeypatch:
        monkeypatch.setattr("tokenprune.core.registry.entry_points", lambda group: points)
    return Registry("pruner", group="tokenprune.pruners" if monkeypatch else None)


def test_entry_carries_summary_and_paper():
    r = registry()
    assert r.register("thing", paper="https://example.org")(Thing) is Thing
    entry = r.entry("thing")
    assert (entry.name, entry.target, entry.summary, entry.paper) == ("thing", Thing, "A thing.", "https://example.org")
    assert r.names() == ["thing"]
    assert "thing" in r
    assert "other" not in r


@pytest.mark.parametrize("name", ["", "Thing", "my-thing", "1st", "a b", "ä", None])
def test_malformed_names(name):
    with pytest.raises(RegistryError, match="malformed"):
        registry().register(name)(Thing)


def test_taken_names_and_redefinition():
    r = registry()
    r.register("thing")(Thing)
    with pytest.raises(RegistryError, match=r"taken by .*Thing"):
        r.register("thing")(type("Other", (), {"__doc__": "Another."}))
    again = type("Thing", (), {"__module__": Thing.__module__, "__qualname__": Thing.__qualname__})
    r.register("thing")(again)  # a notebook cell run twice
    assert r.get("thing") is again


def test_unknown_names_are_answered_with_a_suggestion():
    r = registry()
    r.register("cdpruner")(Thing)
    with pytest.raises(RegistryError, match=r"unknown pruner 'cdpruning'; did you mean 'cdpruner'\? Allowed: cdpruner"):
        r.get("cdpruning")


def test_a_broken_plug_in_is_named_and_does_not_break_the_rest(monkeypatch, tmp_path):
    (tmp_path / "good_plugin_x.py").write_text("LOADED = True\n")
    (tmp_path / "bad_plugin_x.py").write_text("raise OSError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(kind, f"{kind}_plugin_x", "tokenprune.pruners") for kind in ("bad", "good")]
    r = registry(monkeypatch, points)
    r.register("thing")(Thing)
    with pytest.warns(UserWarning, match=r"'bad' is ignored: OSError: no driver"):
        assert r.names() == ["thing"]
    assert list(r.broken) == ["bad"]
    with pytest.raises(RegistryError, match=r"'bad' failed to import: OSError: no driver"):
        r.get("bad")


def test_entry_points_wait_until_somebody_asks(monkeypatch):
    asked = []
    monkeypatch.setattr("tokenprune.core.registry.entry_points", lambda group: asked.append(group) or ())
    r = Registry("pruner", group="tokenprune.pruners")
    r.register("thing")(Thing)
    assert not asked
    r.names()
    r.names()
    assert asked == ["tokenprune.pruners"]


def test_a_name_that_the_package_has_is_taken_from_the_beginning():
    code = "import tokenprune as tp\n@tp.register_pruner('random')\nclass Mine(tp.Pruner): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RegistryError: pruner name 'random' is taken by tokenprune.pruners.random.Random" in done.stderr
