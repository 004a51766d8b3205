"""limbeck: distill a dataset, and know what is in the bottle.

Importing the package imports no torch; the names below load on first use.
"""

from functools import reduce
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LimbeckError": "limbeck.errors:LimbeckError",
    "Streams": "limbeck.streams:Streams",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, path = _EXPORTS[name].partition(":")
    return reduce(getattr, path.split("."), import_module(module))


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
