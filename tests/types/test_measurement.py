import json

import numpy as np
import pytest

from limbeck.errors import FileFormatError
from limbeck.types.measurement import Measurement, Quantity


def measurement() -> Measurement:
    trace = Quantity(np.array([[1.0, np.nan], [3.0, 4.0]]), ("step", "seed"), "1", np.zeros((2, 2)), np.full((2, 2), 5.0), "probes")
    return Measurement(
        "curvature",
        "trace",
        {"trace": trace, "mean": Quantity(np.array(2.5))},
        axes={"step": (0, 10), "seed": (1, 2)},
        residuals={"lanczos": float("nan")},
        converged=False,
        notes=("Lanczos stopped early",),
    )


def test_survives_json_and_keeps_what_could_not_be_measured_as_nan() -> None:
    again = Measurement.from_dict(json.loads(json.dumps(measurement().to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again["trace"].values, measurement()["trace"].values)
    np.testing.assert_array_equal(again["trace"].high, measurement()["trace"].high)
    assert again["mean"].values == 2.5
    assert again["mean"].low is None
    assert not again.converged
    assert again.axes == {"step": (0, 10), "seed": (1, 2)}
    assert np.isnan(again.residuals["lanczos"])


def test_a_single_number_that_could_not_be_measured_survives_json() -> None:
    nothing = np.array(np.nan)
    made = Measurement(
        "x", "x", {"gap": Quantity(nothing, (), "", nothing, nothing), "edge": Quantity(np.array(1.0), (), "", np.array(0.5), nothing)}
    )
    record = made.to_dict()
    again = Measurement.from_dict(json.loads(json.dumps(record, allow_nan=False)))
    assert np.isnan(again["gap"].values)
    assert again["edge"].low == 0.5
    assert again["edge"].high is not None
    assert np.isnan(again["edge"].high)
    assert again.to_dict() == record


def test_axes_and_bounds_must_fit() -> None:
    with pytest.raises(ValueError, match="one axis name for each of its 1 sides"):
        Quantity(np.zeros(3))
    with pytest.raises(ValueError, match="bounds of an interval come together"):
        Quantity(np.zeros(3), ("a",), low=np.zeros(3))
    with pytest.raises(ValueError, match="has 3 entries along 'a', whose coordinates are 2"):
        Measurement("x", "x", {"q": Quantity(np.zeros(3), ("a",))}, axes={"a": (1, 2)})


def test_a_damaged_record_is_one_sentence() -> None:
    record = measurement().to_dict()
    del record["quantities"]["trace"]["values"]
    with pytest.raises(FileFormatError, match="not a limbeck measurement"):
        Measurement.from_dict(record)
