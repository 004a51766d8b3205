"""The page and the figures of a memorization experiment: phase diagrams with their theory lines, curves with intervals, decision regions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import limbeck
from limbeck import store
from limbeck.leak.experiment import Chart, Experiment
from limbeck.report import words
from limbeck.report.figures import PALETTE, WIDE, Figure
from limbeck.report.page import environment
from limbeck.types.measurement import Measurement, Quantity

_BLUE, _INK, _LINE, _MUTED, _PAPER, _VERMILION = (PALETTE[name][0] for name in ("blue", "ink", "line", "muted", "paper", "vermilion"))
_FAINTEST = 0.12  # the shade of the least value: on white, what is known must not look like nothing
_UNKNOWN = "no answer"
_DASHES = ([1, 0], [6, 4], [2, 3], [8, 3, 2, 3])
_LINES = (_BLUE, _VERMILION, _INK, "#5a8f29", "#8a5fb0", "#b08d1f", "#3f9c9c", "#a05a78")
_REGIONS = ("#7fb6dc", "#f0b48c", "#a9d18e", "#cbb2e0", "#f2d675", "#9fd6d2", "#e3a3b8", "#c4c4c4", "#b5a48f", "#8f9fd1")


def write_leak_report(experiment: Experiment, measurement: Measurement, out: Path) -> Path:
    """Writes ``out/leak.html`` and its figures as ``out/figures/*.svg`` and ``*.png``; returns the page's path. Equal measurements give equal bytes."""
    drawn = [(chart, figure) for chart in experiment.charts for figure in leak_figures(chart, measurement)]
    for _, figure in drawn:
        figure.save(out / "figures")
    html = (
        environment()
        .get_template("leak.html.j2")
        .render(
            experiment=experiment,
            measurement=measurement,
            charts=[
                {"title": figure.title, "alt": figure.alt, "svg": figure.svg(WIDE, prefix=figure.name), "reading": chart.reading}
                for chart, figure in drawn
            ],
            headline=[(name.replace("_", " "), quantity_words(measurement[name]), measurement[name].unit) for name in experiment.headline],
            options=sorted(measurement.settings["options"].items()),
            palette=PALETTE,
            version=limbeck.__version__,
        )
    )
    page = out / "leak.html"
    store.write_text(page, html)
    return page


def quantity_words(quantity: Quantity) -> str:
    """A scalar with its interval, three significant digits; a dash where it is not known."""
    value = float(quantity.values)
    if math.isnan(value):
        return words.DASH
    text = f"{value:.3g}"
    return text if quantity.low is None or quantity.high is None else f"{text} [{float(quantity.low):.3g}, {float(quantity.high):.3g}]"


def leak_figures(chart: Chart, measurement: Measurement) -> list[Figure]:
    """One figure for a chart, or one for each coordinate of its `panel`; none where the measurement lacks the quantity or an axis coordinate."""
    quantity = measurement.quantities.get(chart.quantity)
    if quantity is None or any(value not in measurement.axes.get(axis, ()) for axis, value in chart.where.items()):
        return []
    if chart.panel is None:
        return [_figure(chart, measurement, quantity, chart.where, chart.name, chart.title)]
    return [
        _figure(
            chart, measurement, quantity, {**chart.where, chart.panel: value}, f"{chart.name}-{_slug(value)}", f"{chart.title}: {chart.panel} {value}"
        )
        for value in measurement.axes[chart.panel]
    ]


def _figure(chart: Chart, measurement: Measurement, quantity: Quantity, where: Mapping[str, Any], name: str, title: str) -> Figure:
    draw = {"heat": _heat, "lines": _lines, "regions": _regions}[chart.kind]
    return draw(chart, measurement, quantity, where, name, title)


def _slug(value: Any) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in str(value)).strip("-").lower()


def _taken(measurement: Measurement, quantity: Quantity, values: np.ndarray, where: Mapping[str, Any], keep: Sequence[str]) -> np.ndarray:
    """The array with axes `keep`, in that order: others fixed by `where`, or averaged."""
    axes = list(quantity.axes)
    for axis in list(axes):
        place = axes.index(axis)
        if axis in where:
            values = np.take(values, measurement.axes[axis].index(where[axis]), place)
            axes.remove(axis)
        elif axis not in keep:
            values = values.mean(place)
            axes.remove(axis)
    return np.transpose(values, [axes.index(axis) for axis in keep])


def _edges(coordinates: Sequence[float], log: bool) -> list[float]:
    """Borders of cells around the coordinates: middles between neighbors, and as far beyond the first and last, but not below zero where no coordinate is."""
    values = np.log10(coordinates) if log else np.array(coordinates, dtype=float)
    if len(values) == 1:
        return [float(v) for v in (10 ** (values[0] - 0.1), 10 ** (values[0] + 0.1))] if log else [float(values[0] - 0.5), float(values[0] + 0.5)]
    middle = (values[1:] + values[:-1]) / 2
    borders = np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    if not log and values[0] >= 0:
        borders[0] = max(borders[0], 0)
    return [float(v) for v in (10**borders if log else borders)]


def _axis_title(measurement: Measurement, axis: str | None) -> str:
    return str(measurement.settings.get("axis_titles", {}).get(axis, axis))


def _heat(chart: Chart, measurement: Measurement, quantity: Quantity, where: Mapping[str, Any], name: str, title: str) -> Figure:
    assert chart.y is not None
    values = _taken(measurement, quantity, quantity.values, where, (chart.x, chart.y))
    x_edges, y_edges = _edges(measurement.axes[chart.x], chart.log_x), _edges(measurement.axes[chart.y], chart.log_y)
    cells, blank = [], []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            cell = {"x": x_edges[i], "x2": x_edges[i + 1], "y": y_edges[j], "y2": y_edges[j + 1]}
            if math.isnan(value):
                blank.append(cell)
            else:
                cells.append({**cell, "v": round(float(value), 3)})
    fractions = quantity.unit == "fraction"
    low = float(measurement.settings.get("chance", 0)) if fractions and not isinstance(measurement.settings.get("chance"), list) else None
    known = values[~np.isnan(values)]
    domain = [low, 1.0] if low is not None else [float(known.min()) if known.size else 0, float(known.max()) if known.size else 1]
    curves = {curve: points for curve, points in measurement.settings.get("curves", {}).items() if curve in chart.curves}
    limits = (x_edges[0], x_edges[-1], y_edges[0], y_edges[-1])
    points = [
        {"curve": curve, "x": x, "y": y, "order": order}
        for curve, line in curves.items()
        for order, (x, y) in enumerate(line)
        if _inside(x, y, limits)
    ]
    alt = f"Heat map of {title}: {_axis_title(measurement, chart.x)} across, {_axis_title(measurement, chart.y)} up; from "
    alt += f"{known.min():.2f} to {known.max():.2f}." if known.size else "no known value."
    if blank:
        alt += f" Cells without an answer, crossed by a line: {len(blank)}."

    def build(width: int) -> Any:
        import altair as alt_

        scale_x = alt_.Scale(type="log" if chart.log_x else "linear", domain=[x_edges[0], x_edges[-1]], nice=False, zero=False)
        scale_y = alt_.Scale(type="log" if chart.log_y else "linear", domain=[y_edges[0], y_edges[-1]], nice=False, zero=False)
        x = alt_.X("x:Q", scale=scale_x, axis=alt_.Axis(title=_axis_title(measurement, chart.x), grid=False))
        y = alt_.Y("y:Q", scale=scale_y, axis=alt_.Axis(title=_axis_title(measurement, chart.y), grid=False))
        opacity = alt_.Opacity(
            "v:Q",
            scale=alt_.Scale(domain=domain, range=[_FAINTEST, 1], clamp=True),
            legend=alt_.Legend(
                title=quantity.unit,
                symbolType="square",
                symbolSize=200,
                symbolFillColor=_BLUE,
                symbolStrokeColor=_LINE,
                values=[round(float(value), 2) for value in np.linspace(low, 1, 6)] if low is not None else alt_.Undefined,
                labelExpr="datum.index == 0 ? 'at most ' + datum.label + ' (chance)' : datum.label" if low else alt_.Undefined,
                labelLimit=220,
                format=".2~f",
            ),
        )
        unknown = alt_.Color(
            "state:N",
            scale=alt_.Scale(domain=[_UNKNOWN], range=[_MUTED]),
            legend=alt_.Legend(title=None, symbolType="M-1,1L1,-1", symbolSize=200, symbolStrokeWidth=1.5),
        )
        layers = [
            alt_.Chart(alt_.Data(values=[{**cell, "state": _UNKNOWN} for cell in blank]))
            .mark_rule(strokeWidth=1.2, aria=False)
            .encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=unknown),
            alt_.Chart(alt_.NamedData(name="cells"))
            .mark_rect(fill=_BLUE, stroke=None, aria=False)
            .encode(x=x, x2="x2:Q", y=y, y2="y2:Q", opacity=opacity),
        ]
        if not blank:
            del layers[0]
        if points:
            names = list(curves)
            layers.append(
                alt_.Chart(alt_.Data(values=points))
                .mark_line(color=_VERMILION, strokeWidth=2.5)
                .encode(
                    x=x,
                    y=y,
                    order="order:Q",
                    strokeDash=alt_.StrokeDash(
                        "curve:N",
                        sort=names,
                        scale=alt_.Scale(domain=names, range=list(_DASHES[: len(names)])),
                        legend=alt_.Legend(title=None, orient="top", symbolStrokeColor=_VERMILION),
                    ),
                )
            )
        return alt_.layer(*layers).properties(width=width - 200, height=min(420, width - 120))

    return Figure(name, title, alt, build, {"cells": cells})


def _inside(x: float | None, y: float | None, limits: tuple[float, float, float, float]) -> bool:
    return x is not None and y is not None and bool(limits[0] <= x <= limits[1] and limits[2] <= y <= limits[3])


def _lines(chart: Chart, measurement: Measurement, quantity: Quantity, where: Mapping[str, Any], name: str, title: str) -> Figure:
    keep = (chart.x,) if chart.color is None else (chart.x, chart.color)
    sides = {"v": quantity.values}
    if quantity.low is not None and quantity.high is not None and set(quantity.axes) <= {*keep, *where}:
        sides |= {"low": quantity.low, "high": quantity.high}  # an average over an axis has no interval here
    taken = {side: _taken(measurement, quantity, values, where, keep) for side, values in sides.items()}
    series = [""] if chart.color is None else [f"{chart.color} {value}" for value in measurement.axes[chart.color]]
    spoken = all(isinstance(value, str) for value in measurement.axes[chart.x])
    rows = []
    for i, place in enumerate(measurement.axes[chart.x]):
        for j, label in enumerate(series):
            entry = {side: float(values[i] if chart.color is None else values[i, j]) for side, values in taken.items()}
            if not any(math.isnan(value) for value in entry.values()):
                rows.append({"x": place, "series": label, **entry})
    top = max((row["v"] for row in rows), default=1.0)
    alt = (
        f"{title}, {_axis_title(measurement, chart.x)} across" + (f", {len(series)} lines" if len(series) > 1 else "") + f"; largest value {top:.3g}."
    )

    def build(width: int) -> Any:
        import altair as alt_

        kind = "x:N" if spoken else "x:Q"
        scale = alt_.Undefined if spoken else alt_.Scale(type="log" if chart.log_x else "linear", zero=False, nice=False, padding=8)
        axis = alt_.Axis(title=_axis_title(measurement, chart.x), labelAngle=-30 if spoken else 0, labelLimit=220)
        x = alt_.X(kind, scale=scale, sort=None, axis=axis) if spoken else alt_.X(kind, scale=scale, axis=axis)
        y = alt_.Y("v:Q", title=quantity.unit, scale=alt_.Scale(zero=False, nice=True))
        color = alt_.Color(
            "series:N",
            sort=series,
            scale=alt_.Scale(domain=series, range=[_LINES[i % len(_LINES)] for i in range(len(series))]),
            legend=alt_.Legend(title=None, orient="top", columns=4) if len(series) > 1 else None,
        )
        shape = alt_.Shape("series:N", sort=series, scale=alt_.Scale(domain=series), legend=alt_.Undefined if len(series) > 1 else None)
        base = alt_.Chart(alt_.Data(values=rows))
        layers = []
        if rows and "low" in rows[0]:
            spread = base.mark_rule(strokeWidth=1.5, opacity=0.6) if spoken else base.mark_area(opacity=0.16, line=False)
            layers.append(spread.encode(x=x, y=alt_.Y("low:Q", title=quantity.unit, scale=alt_.Scale(zero=False)), y2="high:Q", color=color))
        if not spoken:
            layers.append(base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color))
        layers.append(base.mark_point(size=46, filled=True, opacity=1, stroke=_PAPER, strokeWidth=0.7).encode(x=x, y=y, color=color, shape=shape))
        return alt_.layer(*layers).properties(width=width - 100, height=320)

    return Figure(name, title, alt, build)


def _regions(chart: Chart, measurement: Measurement, quantity: Quantity, where: Mapping[str, Any], name: str, title: str) -> Figure:
    assert chart.y is not None
    values = _taken(measurement, quantity, quantity.values, where, (chart.x, chart.y))
    x_edges, y_edges = _edges(measurement.axes[chart.x], False), _edges(measurement.axes[chart.y], False)
    points = list(measurement.settings.get("points", ()))
    phases = list(measurement.settings.get("phases", ()))
    names = phases or [str(number) for number in range(int(np.nanmax(quantity.values)) + 1)]
    cells = [
        {"x": x_edges[i], "x2": x_edges[i + 1], "y": y_edges[j], "y2": y_edges[j + 1], "k": names[int(value)]}
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if not math.isnan(value)
    ]
    x_title, y_title = (_axis_title(measurement, axis) for axis in (chart.x, chart.y))
    if phases:
        alt = f"{title}: {x_title} across, {y_title} up; each color is one of {'; '.join(names)}."
    else:
        alt = f"{title}: decision regions of {len(names)} classes in the plane with {len(points)} training points, named by their class number; "
        alt += "held-out points are ringed."

    def build(width: int) -> Any:
        import altair as alt_

        x = alt_.X("x:Q", scale=alt_.Scale(domain=[x_edges[0], x_edges[-1]], nice=False), axis=alt_.Axis(title=x_title, grid=False))
        y = alt_.Y("y:Q", scale=alt_.Scale(domain=[y_edges[0], y_edges[-1]], nice=False), axis=alt_.Axis(title=y_title, grid=False))
        color = alt_.Color(
            "k:N",
            sort=names,
            scale=alt_.Scale(domain=names, range=[_REGIONS[k % len(_REGIONS)] for k in range(len(names))]),
            legend=alt_.Legend(title="phase" if phases else "class", labelLimit=260),
        )
        base = alt_.Chart(alt_.Data(values=points))
        held_out = alt_.Chart(alt_.Data(values=[point for point in points if point["held_out"]]))
        return alt_.layer(
            alt_.Chart(alt_.NamedData(name="cells")).mark_rect(stroke=None, aria=False).encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=color),
            held_out.mark_point(size=260, color=_INK, strokeWidth=1.4, aria=False).encode(x=x, y=y),
            base.mark_text(fontSize=12, fontWeight=600, color=_INK).encode(x=x, y=y, text="label:N"),
        ).properties(width=min(width - 160, 520), height=min(width - 160, 520))

    return Figure(name, title, alt, build, {"cells": cells})


__all__ = ["leak_figures", "quantity_words", "write_leak_report"]
