"""The page of analyses: every kind of plot from small measurements, tables in per cent, and a page that needs nothing else."""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.small import subject

from limbeck.analyze.subject import Plot
from limbeck.report.analysis import _domain, _ticks, plot_figure, quantity_rows, render_analysis, scalar_text, write_analysis
from limbeck.study.analyzing import Outcome
from limbeck.types.measurement import Measurement, Quantity

STEPS = (0, 1, 10)
PLOTS = (
    Plot("curve", "A curve", x="step", color="kind", panel="place", log=True),
    Plot("level", "Levels", x="kind", color="place", kind="dots", reading="Read it so."),
    Plot("shades", "Shades", x="step", color="kind", kind="heat"),
    Plot("spots", "Spots", x="point", color="spot_class", shape="spot_mark", kind="scatter"),
    Plot("nearest", "Nearest", x="image", kind="gallery"),
    Plot("absent", "Not measured", x="step"),
)


def measurement() -> Measurement:
    rng = np.random.default_rng(0)
    curve = rng.random((2, 3, 2))
    return Measurement(
        analysis="recognition",
        title="Recognition",
        quantities={
            "curve": Quantity(curve, ("kind", "step", "place"), "fraction of test images", curve - 0.1, curve + 0.1, "networks"),
            "level": Quantity(np.array([[0.5, -0.25], [0.125, np.nan]]), ("kind", "place"), "kappa"),
            "shades": Quantity(curve[..., 0], ("kind", "step"), "fraction"),
            "spots": Quantity(rng.normal(size=(4, 2)), ("point", "coordinate")),
            "spot_class": Quantity(np.array([0.0, 1, 0, 1]), ("point",)),
            "spot_mark": Quantity(np.array([1.0, 1, 0, 0]), ("point",)),
            "nearest": Quantity(np.array([[0.0, 3], [7, np.nan]]), ("image", "rank")),
            "gap": Quantity(np.array(0.031), (), "difference of fractions, paired", np.array(0.01), np.array(0.05), "networks"),
        },
        axes={
            "step": STEPS,
            "kind": ("first", "second"),
            "place": ("here", "there"),
            "point": (0, 1, 2, 3),
            "coordinate": ("x", "y"),
            "class": ("band 0", "band 1"),
            "image": (0, 5),
            "rank": (1, 2),
        },
        settings={"seeds": 2},
        notes=("one note",),
    )


class Drawn:
    name, title, summary, version = "recognition", "Recognition", "Does it draw?", 1
    headline = ("gap", "level", "absent")
    plots: ClassVar[tuple[Plot, ...]] = PLOTS


@pytest.fixture(autouse=True)
def _its_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.report.analysis.ANALYSES", {"recognition": Drawn})


def test_every_kind_of_plot_is_drawn_at_every_width_and_the_unmeasured_is_not() -> None:
    made = measurement()
    for plot in PLOTS[:4]:
        figure = plot_figure(made, plot)
        assert figure is not None
        for width in (1000, 340):
            assert figure.svg(width).startswith("<svg")
        assert figure.alt.startswith(plot.title)
    assert plot_figure(made, PLOTS[-1]) is None


def test_fractions_are_shown_in_per_cent_and_what_has_no_value_as_a_dash() -> None:
    rows = quantity_rows(measurement(), ("gap", "level", "absent"))
    assert rows[0] == ["gap", "", "3.1  [1.0, 5.0]", "points, paired"]
    assert rows[1:] == [
        ["level", "first, here", "0.5", "kappa"],
        ["level", "first, there", "−0.25", "kappa"],
        ["level", "second, here", "0.125", "kappa"],
        ["level", "second, there", "–", "kappa"],
    ]


def drawn(quantity: Quantity, plot: Plot, width: int = 1000, **axes: tuple[Any, ...]) -> tuple[str, str]:
    """The drawing of one quantity and its text for those who do not see it."""
    figure = plot_figure(Measurement("a", "A", {plot.quantity: quantity}, axes), plot)
    assert figure is not None
    return figure.svg(width), figure.alt


@pytest.mark.parametrize("width", [1000, 340])
def test_dots_have_a_drawing_for_each_panel(width: int) -> None:
    values = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]])
    plot = Plot("accuracy", "Classes", "class", kind="dots", color="treatment", panel="ipc")
    quantity = Quantity(values, ("ipc", "treatment", "class"), "fraction", values - 0.6, values + 0.1, "draws")
    picture, alt = drawn(quantity, plot, width, ipc=(1, 10), treatment=("control", "none"), **{"class": ("class 8", "class 37")})
    assert {"ipc: 1", "ipc: 10"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    assert picture.count(">class 37</text>") == 2
    assert alt == "Classes, in %: from 10 (control, ipc 1, class 8) to 80 (none, ipc 10, class 37)."
    # a rule that reaches below 0 ends at the axis instead of running over the labels
    assert "clip-path" in picture


def test_whole_numbers_have_no_ticks_between_them_and_log_axes_keep_fractions() -> None:
    quantity = Quantity(np.array([0.1, 0.2, 0.3]), ("epoch",), "fraction")
    picture, _ = drawn(quantity, Plot("accuracy", "A", "epoch"), epoch=(1, 2, 3))
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert [shown.count(label) for label in ("1", "1.5", "2", "2.5", "3")] == [1, 0, 1, 0, 1]
    picture, _ = drawn(quantity, Plot("accuracy", "A", "epoch", log=True), epoch=(0.25, 1, 4))
    assert {"0.25", "1", "4"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    assert _ticks([0, 100, 200, 400], log=False)["values"] == [0, 100, 200, 300, 400]
    assert _ticks([3, 102], log=False)["values"] == [3, 20, 40, 60, 80, 100]
    assert _ticks([5], log=False)["values"] == [5]


def test_a_legend_of_numbers_says_what_they_are() -> None:
    quantity = Quantity(np.array([[0.1, 0.2], [0.3, 0.4]]), ("ipc", "epoch"), "fraction")
    picture, alt = drawn(quantity, Plot("accuracy", "A", "epoch", color="ipc"), ipc=(1, 10), epoch=(1, 2))
    assert {"ipc 1", "ipc 10"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    assert alt == "A, in %: from 10 (ipc 1, epoch 1) to 40 (ipc 10, epoch 2)."


def test_differences_below_zero_stay_on_the_axis() -> None:
    quantity = Quantity(np.array([-0.2, -0.1]), ("epoch",), "fraction", np.array([-0.3, -0.2]), np.array([-0.1, 0.0]))
    picture, _ = drawn(quantity, Plot("gap", "A", "epoch"), epoch=(1, 2))
    assert ">−20</text>" in picture


def test_a_scatter_names_its_colors_its_axes_and_its_marks() -> None:
    quantities = {
        "place": Quantity(np.array([[1.0, 0.2], [2.0, 0.3]]), ("setting", "coordinate")),
        "arm": Quantity(np.array([0.0, 1.0]), ("setting",)),
        "on": Quantity(np.array([0.0, 1.0]), ("setting",)),
    }
    made = Measurement("front", "Front", quantities, {"setting": ("a", "b"), "coordinate": ("images (log10)", "accuracy")})
    words = {"arm": ("hard", "topk"), "on": ("beaten settings", "those on the front")}
    figure = plot_figure(made, Plot("place", "Front", "setting", kind="scatter", color="arm", shape="on", words=words))
    assert figure is not None
    assert {"hard", "topk", "images (log10)", "accuracy"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg(1000)))
    assert figure.alt == "Front: 2 points; large diamonds are those on the front, small circles beaten settings."


def test_scalars_are_shown_as_percent_with_their_interval() -> None:
    assert scalar_text(Quantity(np.array(0.331), (), "fraction", np.array(-0.7288), np.array(1.391))) == "33.1 [−72.9, 139.1] %"
    assert scalar_text(Quantity(np.array(6.04), (), "times")) == "6.04 times"


def test_an_axis_that_is_not_drawn_is_averaged() -> None:
    made = measurement()
    figure = plot_figure(made, Plot("curve", "A curve", x="step", color="kind", log=True))
    assert figure is not None
    best = 100 * made["curve"].values.mean(2).max()
    assert f"{best:.3g}" in figure.alt


def test_the_page_is_complete_and_names_what_was_skipped(tmp_path: Path) -> None:
    outcomes = (Outcome("recognition", measurement()), Outcome("mixing", refusal="mixing needs more <classes>"))
    page = write_analysis("a set on digits", outcomes, subject(), tmp_path)
    html = page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", html)
    for text in (
        "What has it learned? a set on digits",
        "Does it draw?",
        "one note",
        "mixing needs more &lt;classes&gt;",
        "Read it so.",
        "3.1  [1.0, 5.0]",
    ):
        assert text in html
    assert html.count("data:image/png") == 2 + 3  # two distilled images and the test images that are named
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"recognition-curve.png", "recognition-spots.svg"}
    assert render_analysis("a set on digits", outcomes, subject())[0] == html


@pytest.mark.parametrize("value", [2.28, 0.0, -3.0, 96.0])
def test_one_value_alone_has_an_axis_whose_ticks_differ_to_the_eye(value: float) -> None:
    low, high = _domain([{"value": value, "low": value, "high": value}], "times")
    assert low < value < high
    assert high - low >= 0.09 * (abs(value) or 1)
