"""limbeck: distill a dataset, and know what is in the bottle.

Importing the package imports no torch; the names below load on first use.
"""

from functools import reduce
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load": "limbeck.types.distilled:DistilledDataset.load",
    "distill": "limbeck.study.distill:distill",
    "evaluate_file": "limbeck.study.judge:evaluate_file",
    "train_on_file": "limbeck.study.judge:train_on_file",
    "write_report": "limbeck.report.page:write_report",
    "open_source": "limbeck.data.opening:open_source",
    "Splits": "limbeck.data.splits:Splits",
    "DistilledDataset": "limbeck.types.distilled:DistilledDataset",
    "DistillOptions": "limbeck.study.options:DistillOptions",
    "EvaluationOptions": "limbeck.study.options:EvaluationOptions",
    "Expert": "limbeck.experts.expert:Expert",
    "Labels": "limbeck.types.labels:Labels",
    "PixelSpace": "limbeck.types.pixels:PixelSpace",
    "Recipe": "limbeck.types.recipe:Recipe",
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
