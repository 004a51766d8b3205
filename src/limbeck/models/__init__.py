"""Classifiers: a table of names, plain-data specifications, and seeded construction.

``build(parse_model("convnet-d4-w64"), shape=(3, 64, 64), classes=200, generator=streams.torch("init"))``. Only `build` imports torch, so that the
command line can list and check model names instantly.
"""

from typing import TYPE_CHECKING, Any

from limbeck.models.spec import MODELS, ModelSpec, parse_model

if TYPE_CHECKING:
    from limbeck.models.construct import build

__all__ = ["MODELS", "ModelSpec", "build", "parse_model"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from limbeck.models.construct import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
