"""Visible lazy tables: a name on the command line, and the object that it loads on first use."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from limbeck.errors import OptionError, nearest


class Registry(Mapping[str, Any]):
    """A read-only table from name to ``"module:object"``; the module is imported when the entry is first asked for.

    Adding a method, source, model or analysis is one file and one line in such a table; the command line's choices, the docs and the conformance
    tests iterate over it.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise OptionError(f"unknown {self.kind} {name!r}; {nearest(name, self._entries)}")
        module, _, attribute = self._entries[name].partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Returns `name` when the table has it; raises `OptionError` otherwise. Imports nothing."""
        if name not in self._entries:
            raise OptionError(f"unknown {self.kind} {name!r}; {nearest(name, self._entries)}")
        return name
