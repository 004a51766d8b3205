"""`Measurement`: what an analysis returns, as named arrays with axes and units, and the residuals that say whether it converged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.errors import FileFormatError


@dataclass(frozen=True)
class Quantity:
    """An array [one side for each name in `axes`] in `unit`. `low` and `high`, of the same shape, bound a 95 % interval where one was estimated; `covers` names
    the variance inside it. NaN stands for what could not be measured, and a note of the measurement says why."""

    values: np.ndarray
    axes: tuple[str, ...] = ()
    unit: str = ""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    covers: str = ""

    def __post_init__(self) -> None:
        for name in ("values", "low", "high"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, np.asarray(given, dtype=np.float64))
        if self.values.ndim != len(self.axes):
            raise ValueError(f"a quantity needs one axis name for each of its {self.values.ndim} sides, got {self.axes}")
        if (self.low is None) != (self.high is None) or any(side is not None and side.shape != self.values.shape for side in (self.low, self.high)):
            raise ValueError("the bounds of an interval come together and have the shape of the values")


@dataclass(frozen=True)
class Measurement:
    """The result of one analysis of one distilled set.

    `axes` gives the coordinates of every axis name (numbers or words). `residuals` hold what says whether iterative parts converged, and `converged` is the
    verdict on them; `notes` are sentences for the reader (what failed, what was left out, what the sizes were). `settings` are plain facts: options, seeds,
    digests of the set and of every network, sizes. Failure is data: a run that did not converge is returned, and says so.
    """

    analysis: str
    title: str
    quantities: Mapping[str, Quantity]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)
    converged: bool = True
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, quantity in self.quantities.items():
            for axis, side in zip(quantity.axes, quantity.values.shape, strict=True):
                if len(self.axes.get(axis, ())) != side:
                    raise ValueError(f"{name} has {side} entries along {axis!r}, whose coordinates are {len(self.axes.get(axis, ()))}")

    def __getitem__(self, name: str) -> Quantity:
        return self.quantities[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; null stands for NaN and the infinities."""
        quantities = {
            name: {
                "values": _plain(quantity.values),
                "axes": list(quantity.axes),
                "unit": quantity.unit,
                "low": None if quantity.low is None else _plain(quantity.low),
                "high": None if quantity.high is None else _plain(quantity.high),
                "covers": quantity.covers,
            }
            for name, quantity in self.quantities.items()
        }
        return {
            **vars(self),
            "quantities": quantities,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "settings": dict(self.settings),
            "residuals": {name: _plain(np.asarray(value)) for name, value in self.residuals.items()},
            "notes": list(self.notes),
        }

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Measurement":
        """Inverse of `to_dict`, except that what was not finite comes back as NaN."""
        try:
            known = {key: record[key] for key in Measurement.__dataclass_fields__}
            quantities = {name: Quantity(**{**given, "axes": tuple(given["axes"]), **_arrays(given)}) for name, given in known["quantities"].items()}
            axes = {name: tuple(values) for name, values in known["axes"].items()}
            residuals = {name: float("nan") if value is None else value for name, value in known["residuals"].items()}
            return Measurement(**{**known, "quantities": quantities, "axes": axes, "residuals": residuals, "notes": tuple(known["notes"])})
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise FileFormatError(f"not a limbeck measurement ({type(problem).__name__}: {problem}); use an intact measurement.json") from None


def _plain(values: np.ndarray) -> Any:
    if values.ndim:
        return [_plain(np.asarray(part)) for part in values]
    return float(values) if np.isfinite(values) else None


def _arrays(given: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
    """Values and bounds; null is NaN for a value and for one bound of two, and stands for no interval where both bounds are null."""
    bounds = {key: given[key] for key in ("low", "high")}
    bounded = any(bound is not None for bound in bounds.values())
    return {
        "values": np.array(given["values"], dtype=np.float64),
        **{key: np.array(bound, dtype=np.float64) if bounded else None for key, bound in bounds.items()},
    }
