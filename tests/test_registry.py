import json
import sys

import pytest

from limbeck.errors import OptionError
from limbeck.registry import Registry

TABLE = Registry("tool", {"dumps": "json:dumps", "antigravity": "limbeck.no_such_module:thing"})


def test_entries_load_on_first_use_only() -> None:
    assert list(TABLE) == ["dumps", "antigravity"]
    assert len(TABLE) == 2
    assert "antigravity" in TABLE
    assert TABLE.check("antigravity") == "antigravity"
    assert "limbeck.no_such_module" not in sys.modules
    assert TABLE["dumps"] is json.dumps
    with pytest.raises(ModuleNotFoundError):
        TABLE["antigravity"]


@pytest.mark.parametrize("ask", [TABLE.__getitem__, TABLE.check])
def test_an_unknown_name_is_answered_with_the_nearest(ask: object) -> None:
    with pytest.raises(OptionError) as caught:
        ask("dump")  # type: ignore[operator]
    assert str(caught.value) == "unknown tool 'dump'; did you mean 'dumps'? known: antigravity, dumps"


def test_a_registry_is_a_copy_of_what_it_was_given() -> None:
    entries = {"a": "json:dumps"}
    registry = Registry("tool", entries)
    entries["b"] = "json:loads"
    assert "b" not in registry
    assert None not in registry
