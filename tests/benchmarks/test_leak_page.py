"""Verdicts of the page on leak experiments: a cell without an answer is no evidence for a claim."""

import numpy as np
import pytest
from benchmarks.leak_page import temperatures

from limbeck.types.measurement import Measurement, Quantity

_TAUS = (0.32, 1.0, 3.2, 10.0, 32.0)


def _measured(converged: list[float]) -> Measurement:
    """Of one load: authors, converged and exact students with their own labels, and chance with shuffled ones."""
    held_out = np.full((3, 2, 1, len(_TAUS)), 0.5)
    held_out[:, 0, 0] = [0.5, 0.5, 0.6, 0.9, 1], converged, [1] * 5
    gap = Quantity(held_out[1, 0, 0] - held_out[0, 0, 0], ("tau",), "accuracy")
    return Measurement(
        "temperature",
        "Temperature",
        {"held_out": Quantity(held_out, ("protocol", "labels", "load", "tau"), "fraction"), "optimizer_gap": gap},
        {"protocol": ("authors", "converged", "exact"), "labels": ("own", "shuffled"), "load": (1.5,), "tau": _TAUS},
        {"options": {"rho": 0.8}},
    )


@pytest.mark.parametrize(
    ("converged", "verdict"),
    [
        ([0.95, 1, 1, 1, 1], "holds"),
        ([np.nan, 1, 1, 1, 1], "holds where it answers, 4 of 5"),
        ([np.nan] * 5, "not decided"),
        ([np.nan, 0.5, 1, 1, 1], "does not hold"),
    ],
)
def test_blank_cells_do_not_count_for_converged_students(converged, verdict):
    rows = temperatures(_measured(converged))
    assert rows[1].verdict == verdict
    assert (rows[3].verdict == "not decided") == (verdict == "not decided")
    assert f"no answer at {int(np.isnan(converged).sum())} of 5 cells" in rows[4].measured
