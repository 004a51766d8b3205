"""Labeled image sources, their splits, and what happens to pixels before a network sees them.

`SOURCES` is the visible table of sources; each entry opens ``(target, SourceOptions) -> Source``. Importing this package imports no torch, so that
the command line can list the table at once; the other names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from limbeck.registry import Registry

if TYPE_CHECKING:
    from limbeck.data.opening import SourceOptions, open_source
    from limbeck.data.splits import Splits, TestHandle
    from limbeck.data.tables import ArrayTable, ImageTable, Source, Subset, describe

SOURCES = Registry(
    "data source",
    {
        "digits": "limbeck.data.digits:open_digits",
        "fashion-mnist": "limbeck.data.idx:open_fashion_mnist",
        "mnist": "limbeck.data.idx:open_mnist",
        "cifar10": "limbeck.data.cifar:open_cifar10",
        "cifar100": "limbeck.data.cifar:open_cifar100",
        "tiny-imagenet": "limbeck.data.tiny_imagenet:open_tiny_imagenet",
        "folder": "limbeck.data.folder:open_folder",
        "npz": "limbeck.data.npz:open_npz",
        "parquet": "limbeck.data.parquet:open_parquet",
        "hf": "limbeck.data.hf:open_hf",
        "composed": "limbeck.data.composed:open_composed",
        "planted": "limbeck.data.planted:open_planted",
    },
)

_EXPORTS = {
    "ArrayTable": "tables",
    "ImageTable": "tables",
    "Source": "tables",
    "Subset": "tables",
    "describe": "tables",
    "SourceOptions": "opening",
    "open_source": "opening",
    "Splits": "splits",
    "TestHandle": "splits",
}

__all__ = ["SOURCES", "ArrayTable", "ImageTable", "Source", "SourceOptions", "Splits", "Subset", "TestHandle", "describe", "open_source"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
