"""Figures of leak experiments: what is not known cannot be taken for a low value, and what stands at an axis or in a legend is words."""

import json

import numpy as np
import pytest

from limbeck.leak.experiment import Chart
from limbeck.leak.mlp import MLP_LEAK, PHASES
from limbeck.report.figures import WIDE
from limbeck.report.leak import leak_figures
from limbeck.types.measurement import Measurement, Quantity


def _measured(values: list[list[float]], **settings: object) -> Measurement:
    return Measurement(
        "made-up",
        "Made up",
        {
            "q": Quantity(np.array(values), ("load", "rho"), "fraction"),
            "phase": Quantity(np.array([[3.0, 1.0], [0.0, 0.0]]), ("load", "rho"), "phase"),
        },
        {"load": (2.0, 5.0), "rho": (0.25, 0.75)},
        {"axis_titles": {"load": "load n / d", "rho": "seen fraction rho"}, **settings},
    )


_HEAT = Chart("heat", "Heat", "q", "heat", "load", "rho")


def _drawn(chart: Chart, measurement: Measurement) -> tuple[dict, str, str]:
    (figure,) = leak_figures(chart, measurement)
    return figure.build(WIDE).to_dict(), figure.svg(WIDE), figure.alt


def test_chance_is_a_visible_shade_and_what_has_no_answer_is_crossed():
    layers, svg, alt = _drawn(_HEAT, _measured([[0.5, 1.0], [float("nan"), 0.75]], chance=0.5))
    shades = [layer["encoding"]["opacity"]["scale"] for layer in layers["layer"] if "opacity" in layer["encoding"]]
    assert [scale["range"][0] for scale in shades] == [pytest.approx(0.12)]
    crossed = [layer for layer in layers["layer"] if layer["mark"]["type"] == "rule"]
    assert len(crossed) == 1
    assert crossed[0]["data"]["values"] == [{"x": 3.5, "x2": 6.5, "y": 0.0, "y2": 0.5, "state": "no answer"}]
    assert "no answer" in svg  # in a legend
    assert "at most 0.5 (chance)" in svg
    assert "Cells without an answer, crossed by a line: 1." in alt


def test_a_map_without_blank_cells_has_no_legend_for_them():
    layers, svg, _ = _drawn(_HEAT, _measured([[0.5, 1.0], [0.6, 0.75]], chance=0.5))
    assert all(layer["mark"]["type"] != "rule" for layer in layers["layer"])
    assert "no answer" not in svg


def test_borders_of_loads_do_not_go_below_zero():
    layers, _, _ = _drawn(_HEAT, _measured([[0.5, 1.0], [0.6, 0.75]]))
    assert layers["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0.5, 6.5]
    far = Measurement("x", "X", {"q": Quantity(np.ones((2, 2)), ("load", "rho"), "fraction")}, {"load": (1.0, 5.0), "rho": (0.2, 0.7)})
    assert _drawn(_HEAT, far)[0]["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0.0, 7.0]


def test_phases_have_names_and_axes_have_titles():
    (chart,) = (chart for chart in MLP_LEAK.charts if chart.quantity == "phase")
    drawn, svg, alt = _drawn(chart, _measured([[0, 0], [0, 0]], phases=list(PHASES)))
    first = drawn["layer"][0]["encoding"]
    assert first["color"]["scale"]["domain"] == list(PHASES)
    assert (first["x"]["axis"]["title"], first["y"]["axis"]["title"]) == ("load n / d", "seen fraction rho")
    assert all(name in svg for name in PHASES)
    assert "training points" not in alt
    assert json.dumps(drawn).count('"class"') == 0
