"""One self-contained HTML page about what a set has learned: every analysis with its figures, from measurements and the plots that they ask for."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

import limbeck
from limbeck import store
from limbeck.analyze import ANALYSES
from limbeck.analyze.subject import Plot, Subject
from limbeck.data.tables import ImageTable
from limbeck.report import words
from limbeck.report.figures import PALETTE, Figure
from limbeck.report.page import chart_of, environment
from limbeck.study.analyzing import Outcome
from limbeck.types.measurement import Measurement, Quantity

#: Colors of series, beside those of the report: on white, and on dark. A shape goes with each, so that color is never alone.
SERIES = {
    "first": PALETTE["blue"],
    "second": PALETTE["vermilion"],
    "third": ("#00795a", "#3fc39c"),
    "fourth": ("#8a4b94", "#c991d2"),
    "fifth": ("#7a6400", "#cdb64a"),
    "sixth": PALETTE["muted"],
}
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
#: Middle tones that can be told from both papers, for classes in a map.
_CLASSES = ("#3182bd", "#e6550d", "#31a354", "#756bb1", "#b8860b", "#d6457b", "#17a2a2", "#8c564b", "#7f8c3a", "#6c757d")
_MOST_ROWS, _MOST_PICTURES, _MOST_CHOICES = 40, 12, 12
_INK, _MUTED, _LINE, _PAPER = (PALETTE[name][0] for name in ("ink", "muted", "line", "paper"))


def write_analysis(title: str, outcomes: Sequence[Outcome], subject: Subject, out: Path) -> Path:
    """Writes ``out/analysis.html`` and its figures as ``out/figures/NAME-QUANTITY.svg`` and ``.png``; returns the page's path. It needs no network."""
    html, figures = render_analysis(title, outcomes, subject)
    for figure in figures:
        figure.save(out / "figures")
    page = out / "analysis.html"
    store.write_text(page, html)
    return page


def render_analysis(title: str, outcomes: Sequence[Outcome], subject: Subject) -> tuple[str, list[Figure]]:
    """The page as text and the figures in it."""
    sections, figures = [], []
    for outcome in outcomes:
        if outcome.measurement is None:
            continue
        kind, measurement = ANALYSES[outcome.name], outcome.measurement
        parts: list[dict[str, Any]] = []
        for plot in kind.plots:
            if plot.kind == "gallery":
                rows = _pictures(measurement, plot, subject)
                if rows:
                    parts.append({"plot": plot, "rows": rows, "chart": None})
                continue
            figure = plot_figure(measurement, plot)
            if figure is not None:
                figures.append(figure)
                parts.append({"plot": plot, "chart": chart_of(figure), "rows": None})
        sections.append(
            {
                "name": outcome.name,
                "title": measurement.title,
                "question": kind.summary,
                "parts": parts,
                "rows": quantity_rows(measurement, kind.headline),
                "measurement": measurement,
                "settings": dict(measurement.settings),
                "covers": sorted({quantity.covers for name, quantity in measurement.quantities.items() if name in kind.headline and quantity.covers}),
            }
        )
    dataset = subject.dataset
    facts = [
        ("Set", f"{words.count(len(dataset), 'image')} of {words.count(len(dataset.classes), 'class', 'classes')}, {dataset.labels.kind} labels"),
        ("Students", f"{subject.network.spec}, protocol {subject.protocol}"),
        ("Compared with", f"{words.count(len(subject.train), 'training image')}, {words.count(subject.test.size, 'test image')}"),
        ("Digest of the set", dataset.digest),
    ]
    html = (
        environment()
        .get_template("analysis.html.j2")
        .render(
            title=title,
            sections=sections,
            skipped=[outcome for outcome in outcomes if outcome.measurement is None],
            facts=facts,
            palette={**PALETTE, **SERIES},
            version=limbeck.__version__,
        )
    )
    return html, figures


def quantity_rows(measurement: Measurement, names: Sequence[str]) -> list[list[str]]:
    """Quantities as rows of text: name, coordinates, value with its interval, unit. Fractions are shown in per cent."""
    rows = []
    for name in names:
        quantity = measurement.quantities.get(name)
        if quantity is None:
            continue
        factor, unit = _scale(quantity.unit)
        for index in list(np.ndindex(quantity.values.shape))[:_MOST_ROWS]:
            where = ", ".join(_word(measurement.axes[axis][place], axis) for axis, place in zip(quantity.axes, index, strict=True))
            rows.append([name.replace("_", " "), where, _value_text(quantity, index, factor), unit])
    return rows


def _word(value: Any, axis: str) -> str:
    return value if isinstance(value, str) else f"{axis} {value:,}" if isinstance(value, int) else f"{axis} {value:g}"


def _scale(unit: str) -> tuple[float, str]:
    """What fractions and their differences are multiplied by to be read, and the unit then."""
    if unit.startswith("fraction"):
        return 100.0, "%" + unit.removeprefix("fraction")
    if unit.startswith("difference of fractions"):
        return 100.0, "points" + unit.removeprefix("difference of fractions")
    return 1.0, unit


def _value_text(quantity: Quantity, index: tuple[int, ...], factor: float) -> str:
    value = factor * float(quantity.values[index])
    if math.isnan(value):
        return words.DASH
    text = _number(value, factor)
    if quantity.low is None or quantity.high is None or math.isnan(quantity.low[index]):
        return text
    return f"{text}  [{_number(factor * float(quantity.low[index]), factor)}, {_number(factor * float(quantity.high[index]), factor)}]"


def _number(value: float, factor: float) -> str:
    text = f"{value:.1f}" if factor == 100 else f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    return text.replace("-", words.MINUS)


def scalar_text(quantity: Quantity) -> str:
    """``33.1 [12.9, 53.3] %``: a scalar quantity with its interval and unit, fractions in per cent."""
    factor, unit = _scale(quantity.unit)
    return f"{_value_text(quantity, (), factor).replace('  [', ' [')} {unit}".strip()


def plot_figure(measurement: Measurement, plot: Plot) -> Figure | None:
    """The figure of one plot; None when its quantity was not measured."""
    quantity = measurement.quantities.get(plot.quantity)
    if quantity is None or not np.isfinite(quantity.values).any():
        return None
    factor, unit = _scale(quantity.unit)
    name = f"{measurement.analysis}-{plot.quantity.replace('_', '-').replace(' ', '-')}"
    if plot.kind == "scatter":
        return Figure(name, plot.title, _scatter_words(measurement, plot), _scatter(measurement, plot, quantity))
    rows = _tidy(measurement, plot, quantity, factor)
    build = {"line": _lines, "dots": _dots, "heat": _heat}[plot.kind](measurement, plot, rows, unit)
    return Figure(name, plot.title, _plot_words(plot, rows, unit), build)


def _tidy(measurement: Measurement, plot: Plot, quantity: Quantity, factor: float) -> list[dict[str, Any]]:
    """One row for each coordinate of the axes that are drawn, averaged over the others (which then have no interval)."""
    kept = [axis for axis in dict.fromkeys((plot.x, plot.color, plot.panel)) if axis]
    others = tuple(i for i, axis in enumerate(quantity.axes) if axis not in kept)
    values = quantity.values.mean(axis=others) if others else quantity.values
    low = quantity.low if not others else None
    high = quantity.high if not others else None
    axes = [axis for axis in quantity.axes if axis in kept]
    rows = []
    for index in product(*(range(side) for side in values.shape)):
        value = float(values[index])
        if not math.isfinite(value):
            continue
        place = dict(zip(axes, index, strict=True))
        known = low is not None and high is not None and math.isfinite(low[index]) and math.isfinite(high[index])
        row: dict[str, Any] = {
            "x": measurement.axes[plot.x][place[plot.x]],
            "place": place[plot.x],
            "series": _word(measurement.axes[plot.color][place[plot.color]], plot.color) if plot.color else "",
            "panel": str(measurement.axes[plot.panel][place[plot.panel]]) if plot.panel else "",
            "value": factor * value,
            "low": factor * float(low[index]) if known and low is not None else factor * value,
            "high": factor * float(high[index]) if known and high is not None else factor * value,
        }
        rows.append(row)
    return rows


def _series(measurement: Measurement, plot: Plot) -> tuple[list[str], list[str], list[str]]:
    names = [_word(value, plot.color) for value in measurement.axes[plot.color]] if plot.color else [""]
    colors = [light for light, _ in SERIES.values()]
    return names, [colors[i % len(colors)] for i in range(len(names))], [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]


def _keys(measurement: Measurement, plot: Plot, wide: bool) -> tuple[Any, Any]:
    """Color and shape of the series, with one legend for both."""
    import altair as alt

    names, colors, shapes = _series(measurement, plot)
    legend = (
        alt.Legend(
            title=None,
            orient="top",
            direction="horizontal" if wide else "vertical",
            symbolSize=70,
            symbolOpacity=1,
            labelLimit=320,
            columns=3 if wide else 1,
        )
        if len(names) > 1
        else None
    )
    color = alt.Color("series:N", sort=names, scale=alt.Scale(domain=names, range=colors), legend=legend)
    return color, alt.Shape("series:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=legend)


def _panels(measurement: Measurement, plot: Plot) -> list[str]:
    return [str(value) for value in measurement.axes[plot.panel]] if plot.panel else [""]


def _domain(rows: Sequence[Mapping[str, Any]], unit: str) -> list[float]:
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    room = 0.05 * (high - low or abs(high) or 1.0)  # one value alone keeps an axis with ticks that can be read
    if unit.startswith("%") and all(0 <= row["value"] <= 100 for row in rows):  # an interval may reach beyond what can be; the axis need not
        return [max(low - room, 0.0), min(high + room, 100.0)]
    return [low - room, high + room]


def _lines(measurement: Measurement, plot: Plot, rows: list[dict[str, Any]], unit: str) -> Any:
    positive = [row["x"] for row in rows if row["x"] > 0]
    last, smallest = max(row["x"] for row in rows), min(positive, default=1)
    ticks = _ticks(sorted({row["x"] for row in rows}), plot.log)

    def build(width: int) -> Any:
        import altair as alt

        wide, names = width >= 600, _panels(measurement, plot)
        across = len(names) if wide else 1
        plot_width = (width - 90 * across) / across
        scale = (
            alt.Scale(type="symlog", constant=smallest, domain=[0, last], nice=False, padding=12)
            if plot.log
            else alt.Scale(zero=False, nice=False, padding=12)
        )
        axis = alt.Axis(title=_title(plot.x, log=plot.log), **ticks)
        x = alt.X("x:Q", scale=scale, axis=axis)
        y_scale = alt.Scale(domain=_domain(rows, unit), nice=True, zero=False)
        color, shape = _keys(measurement, plot, wide)
        charts = []
        for name in names:
            base = alt.Chart(alt.Data(values=[row for row in rows if row["panel"] == name]))
            y = alt.Y("value:Q", scale=y_scale, axis=alt.Axis(title=unit, tickCount=6))
            layers = alt.layer(
                base.mark_area(opacity=0.16, clip=True).encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=color),
                base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
                base.mark_point(size=46, filled=True, opacity=1, stroke=_PAPER, strokeWidth=0.8).encode(x=x, y=y, color=color, shape=shape),
            ).properties(width=plot_width, height=260 if wide else 220)
            charts.append(layers.properties(title=alt.Title(f"{_title(plot.panel)}: {name}", fontSize=13, anchor="start")) if plot.panel else layers)
        return charts[0] if len(charts) == 1 else (alt.hconcat if wide else alt.vconcat)(*charts)

    return build


def _ticks(values: Sequence[float | int], log: bool) -> dict[str, Any]:
    """Where numbers across are labeled, and how: whole ones never in between."""
    whole = all(float(value).is_integer() for value in values)
    form = ",d" if whole else ",.6~g"
    if log:
        return {"values": _log_ticks(values), "labelOverlap": "greedy", "format": form}
    if not whole:
        return {"tickCount": 6}
    low, high = int(values[0]), int(values[-1])
    steps = [digit * 10**power for power in range(len(str(high - low))) for digit in (1, 2, 5)]
    step = next((step for step in steps if high - low <= 7 * step), steps[-1])
    return {"values": sorted({low, *range(-(-low // step) * step, high + 1, step)}), "labelOverlap": "greedy", "format": form}


def _dots(measurement: Measurement, plot: Plot, rows: list[dict[str, Any]], unit: str) -> Any:
    names = [str(value) for value in measurement.axes[plot.x]]

    def build(width: int) -> Any:
        import altair as alt

        wide, panels = width >= 600, _panels(measurement, plot)
        series = _series(measurement, plot)[0]
        margin = min(260 if wide else 130, 30 + 7 * max(map(len, names)))
        color, shape = _keys(measurement, plot, wide)
        scale = alt.Scale(domain=_domain(rows, unit), zero=False, nice=True)
        offset: dict[str, Any] = {"yOffset": alt.YOffset("series:N", sort=series, scale=alt.Scale(domain=series))} if len(series) > 1 else {}
        across = len(panels) if wide and len(panels) <= 3 else 1
        charts = []
        for panel in panels:
            base = alt.Chart(alt.Data(values=[{**row, "x": str(row["x"])} for row in rows if row["panel"] == panel]))
            y = alt.Y(
                "x:N",
                sort=names,
                title=None,
                axis=alt.Axis(labelLimit=margin, labelPadding=12, ticks=False, domain=False, grid=True, labelColor=_INK),
                scale=alt.Scale(domain=names),
            )
            x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=unit, tickCount=7 if width / across >= 600 else 4))
            layers = alt.layer(
                base.mark_rule(strokeWidth=2.5, clip=True).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=color, **offset),
                base.mark_point(size=85, filled=True, opacity=1, stroke=_PAPER, strokeWidth=1).encode(x=x, y=y, color=color, shape=shape, **offset),
            ).properties(width=width / across - margin - 60, height=(14 + 16 * len(series)) * len(names))
            charts.append(layers.properties(title=alt.Title(f"{_title(plot.panel)}: {panel}", fontSize=13, anchor="start")) if plot.panel else layers)
        return charts[0] if len(charts) == 1 else (alt.hconcat if across > 1 else alt.vconcat)(*charts)

    return build


def _heat(measurement: Measurement, plot: Plot, rows: list[dict[str, Any]], unit: str) -> Any:
    columns = [str(value) for value in measurement.axes[plot.x]]
    downs = [str(value) for value in measurement.axes[plot.color]] if plot.color else [""]
    low, high = min(row["value"] for row in rows), max(row["value"] for row in rows)
    if unit.startswith("%"):
        low, high = 0.0, 100.0
    span = high - low or 1.0

    def build(width: int) -> Any:
        import altair as alt

        wide = width >= 600
        margin = min(200 if wide else 110, 20 + 7 * max(map(len, downs)))
        step = (width - margin - 40) / len(columns)
        base = alt.Chart(
            alt.Data(
                values=[
                    {
                        **row,
                        "x": str(row["x"]),
                        "text": f"{row['value']:.3g}",
                        "ink": _PAPER if row["value"] - low > 0.5 * span else _INK,
                    }
                    for row in rows
                ]
            )
        )
        x = alt.X(
            "x:N",
            sort=columns,
            title=_title(plot.x),
            axis=alt.Axis(labelAngle=0 if step > 60 else -90, labelLimit=110, labelOverlap="greedy", ticks=False),
        )
        y = alt.Y("series:N", sort=downs, title=None, axis=alt.Axis(labelLimit=margin, ticks=False))
        shade = alt.Opacity("value:Q", scale=alt.Scale(domain=[low, low + span], range=[0.06, 1]), legend=None)
        layers = [base.mark_rect(fill=PALETTE["blue"][0]).encode(x=x, y=y, opacity=shade)]
        if step >= 30:
            layers.append(base.mark_text(fontSize=11).encode(x=x, y=y, text="text:N", color=alt.Color("ink:N", scale=None)))
        return alt.layer(*layers).properties(
            width=width - margin - 40, height=34 * len(downs), title=alt.Title(unit, fontSize=12, anchor="start", color=_MUTED)
        )

    return build


def _scatter(measurement: Measurement, plot: Plot, quantity: Quantity) -> Any:
    colors = measurement[plot.color].values if plot.color else np.zeros(len(quantity.values))
    marks = measurement[plot.shape].values if plot.shape else np.zeros(len(quantity.values))
    names = (plot.words or {}).get(plot.color or "", tuple(map(str, measurement.axes.get("class", ()))))
    few = len(names) <= len(_CLASSES)
    # both coordinates of a map have one unit; others have a name each
    titles = (quantity.unit, quantity.unit) if quantity.unit else tuple(map(str, measurement.axes[quantity.axes[1]]))
    points = [
        {"x": float(x), "y": float(y), "name": names[int(c)] if names else str(int(c)), "big": bool(m)}
        for (x, y), c, m in zip(quantity.values, colors, marks, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]

    def build(width: int) -> Any:
        import altair as alt

        wide = width >= 600
        shown = list(names) or sorted({str(point["name"]) for point in points})
        legend = alt.Legend(title=None, orient="right" if wide else "top", columns=1 if wide else 3, symbolSize=70, symbolOpacity=1)
        color = (
            alt.Color("name:N", sort=shown, scale=alt.Scale(domain=shown, range=list(_CLASSES[: len(shown)])), legend=legend)
            if few
            else alt.value(PALETTE["blue"][0])
        )
        x = alt.X("x:Q", scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(title=titles[0], tickCount=6))
        y = alt.Y("y:Q", scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(title=titles[1], tickCount=6))
        small, big = ([point for point in points if point["big"] is kind] for kind in (False, True))
        return alt.layer(
            alt.Chart(alt.Data(values=small)).mark_point(size=30, filled=True, opacity=0.6, shape="circle").encode(x=x, y=y, color=color),
            alt.Chart(alt.Data(values=big))
            .mark_point(size=110, filled=True, opacity=1, shape="diamond", stroke=_INK, strokeWidth=1.1)
            .encode(x=x, y=y, color=color),
        ).properties(width=width - (190 if wide else 80), height=430 if wide else 300)

    return build


def _pictures(measurement: Measurement, plot: Plot, subject: Subject) -> list[dict[str, Any]]:
    """Rows of a gallery: a distilled image, and the test images that its row of the quantity names."""
    quantity = measurement.quantities.get(plot.quantity)
    if quantity is None:
        return []
    test = subject.test.open_for_measurement()
    numbers, dataset, rows = measurement.axes[plot.x], subject.dataset, []
    every = np.linspace(0, len(quantity.values) - 1, min(len(quantity.values), _MOST_PICTURES)).round().astype(int)
    for row in dict.fromkeys(every.tolist()):
        named = [int(index) for index in quantity.values[row] if math.isfinite(index)][:_MOST_CHOICES]
        number = int(numbers[row])
        own = dataset.pixels.to_pixels(dataset.images[number : number + 1])[0]
        rows.append(
            {
                "uri": _uri((own * 255).round().to(torch.uint8)),
                "name": dataset.classes[int(dataset.owners[number])],
                "number": number,
                "others": _shots(test, named),
            }
        )
    return rows


def _shots(test: ImageTable, indices: Sequence[int]) -> list[dict[str, str]]:
    return [{"uri": _uri(test.read([index])[0]), "name": test.classes[int(test.labels[index])]} for index in indices]


def _uri(image: UInt8[Tensor, "C H W"]) -> str:
    """A picture as a PNG in the page itself (gray or RGB; other channel counts show their first one)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, 0])).save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _title(axis: str | None, *, log: bool = False) -> str:
    known = {"step": "steps of training on real images, 0 = untrained", "added": "real images of each class added", None: ""}
    return known.get(axis, (axis or "").replace("_", " ")) + (", logarithmic" if log else "")


def _log_ticks(values: Sequence[float | int]) -> list[float | int]:
    """Of the values, those that are at least half again as large as the last tick, and the last one."""
    ticks: list[float | int] = []
    for value in values:
        if not ticks or value == values[-1] or value >= max(1.5 * ticks[-1], 1):
            ticks.append(value)
    return ticks


def _plot_words(plot: Plot, rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    best, least = max(rows, key=lambda row: row["value"]), min(rows, key=lambda row: row["value"])

    def spoken(value: Any) -> str:
        return value if isinstance(value, str) else f"{plot.x} {value}"

    def place(row: Mapping[str, Any]) -> str:
        return ", ".join(filter(None, [row["series"], f"{plot.panel} {row['panel']}" if plot.panel else "", spoken(row["x"])]))

    return f"{plot.title}, in {unit}: from {least['value']:.3g} ({place(least)}) to {best['value']:.3g} ({place(best)})."


def _scatter_words(measurement: Measurement, plot: Plot) -> str:
    small, large = (plot.words or {}).get(plot.shape or "", ("real images", "distilled images"))
    marks = f"; large diamonds are {large}, small circles {small}" if plot.shape else ""
    return f"{plot.title}: {words.count(len(measurement[plot.quantity].values), 'point')}{marks}."
