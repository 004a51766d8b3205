"""The report's charts: each built once as data and drawn at several widths, in colors that a style sheet can swap for dark pages.

Color is never the only carrier: shape, position or a written name says the same. Blue and vermilion stay apart for color-blind readers (Okabe and Ito 2008).
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck import store
from limbeck.report import words
from limbeck.report.softness import Softness
from limbeck.report.tables import Row

#: Every color that a chart may use: name, on white, on dark. The dark one replaces the light one by a style sheet that matches the attribute.
PALETTE = {
    "ink": ("#1b2127", "#e8ebee"),
    "muted": ("#56616c", "#a3adb8"),
    "line": ("#dde2e7", "#343c44"),
    "paper": ("#fefefe", "#14181c"),
    "blue": ("#0069a6", "#62b5ee"),
    "vermilion": ("#c04a00", "#ff9a57"),
    "early": ("#e3a478", "#a86a3f"),
    "middle": ("#d1783b", "#d5813f"),
}
_INK, _MUTED, _LINE, _PAPER, _BLUE, _VERMILION, _EARLY, _MIDDLE = (light for light, _ in PALETTE.values())
_PROBABILITIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
_RUNGS = ((_EARLY, "triangle-up"), (_MIDDLE, "square"), (_VERMILION, "diamond"))
WIDE, NARROW = 1000, 340
_FONT = "Helvetica, Arial, Liberation Sans, sans-serif"
_MOST_CLASSES = 100
_LEAST_SHOWN = 0.002  # smaller mean probabilities are drawn as nothing: they are not visible, and a page of 100 classes stays small


@dataclass(frozen=True)
class Figure:
    """A chart by name: what it shows in words (`alt`), its title when it stands alone, and how to build it for a total width in pixels.

    Large `data` are named in the chart and joined when it is drawn, because Altair copies and checks every row of data that are part of a chart.
    """

    name: str
    title: str
    alt: str
    build: Callable[[int], Any]
    data: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def svg(self, width: int, *, titled: bool = False, prefix: str = "") -> str:
        """The chart as SVG text. With `prefix` its ids are renumbered, so that several charts share a page and equal charts are equal bytes."""
        import vl_convert

        chart = _styled(self.build(width))
        if titled:
            chart = chart.properties(title=self.title)
        svg: str = vl_convert.vegalite_to_svg({**chart.to_dict(), **({"datasets": self.data} if self.data else {})})
        return _rename_ids(svg, prefix or self.name)

    def save(self, folder: Path) -> None:
        """Writes ``NAME.svg`` and ``NAME.png`` (twice the pixels), on white and with a title."""
        import vl_convert

        svg = self.svg(WIDE, titled=True)
        picture = vl_convert.svg_to_png(svg, scale=2)
        store.write_text(folder / f"{self.name}.svg", svg + "\n")
        store.write_atomically(folder / f"{self.name}.png", lambda temporary: temporary.write_bytes(picture) and None)


def accuracy_figure(rows: Sequence[Row], title: str) -> Figure:
    """Test accuracy of every row as a dot with its 95 % interval; each student is a faint dot, a network trained on real data a dashed line as well."""
    several_models = len({row.model for row in rows if row.repeats}) > 1
    several_protocols = len({row.protocol_text for row in rows if row.repeats}) > 1
    entries: list[dict[str, Any]] = []
    students: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        detail = [row.model] * (several_models and bool(row.repeats)) + [row.protocol_text] * (several_protocols and bool(row.repeats))
        known = not math.isnan(row.accuracy.low)
        entry: dict[str, Any] = {
            "place": place,
            "text": row.accuracy_text,
            "name": row.name,
            "detail": " · ".join(detail),
            "mean": 100 * row.accuracy.mean,
            # an interval of few students can be wider than accuracies are
            "low": max(0.0, 100 * row.accuracy.low) if known else 100 * row.accuracy.mean,
            "high": min(100.0, 100 * row.accuracy.high) if known else 100 * row.accuracy.mean,
            "kind": "distilled" if row.role == "distilled" else "network" if row.repeats is None else "baseline",
        }
        entries.append(entry)
        if row.repeats and len(row.single) > 1:
            students += [{"place": place, "accuracy": 100 * value, "kind": entry["kind"]} for value in row.single]
    spoken = (f"{row.name}{_in_brackets(row, several_models, several_protocols)}: {row.accuracy_text} %" for row in rows)
    alt = f"Test accuracy. {'; '.join(spoken)}."

    def build(width: int) -> Any:
        import altair as alt_

        wide = width >= 600
        names = [_wrapped(entry, 34 if wide else 16) for entry in entries]
        row_height = 16 + 15 * max(name.count("\n") + 1 for name in names)
        plot_width = width - (225 if wide else 120) - 80
        values = [entry[key] for entry in entries for key in ("low", "high")] + [student["accuracy"] for student in students]
        span = max(max(values) - min(values), 1.0)
        domain = [max(0.0, min(values) - 0.06 * span), min(100.0, max(values) + 0.06 * span)]
        x_axis = alt_.Axis(title="test accuracy after the last epoch (%)", tickCount=8 if wide else 4)
        x_scale = alt_.Scale(domain=domain, zero=False, nice=True)
        y = alt_.Y(
            "place:O",
            title=None,
            scale=alt_.Scale(domain=list(range(len(rows))), paddingInner=0.2, paddingOuter=0.1),
            axis=alt_.Axis(
                labelExpr=f"split({json.dumps(names)}[datum.value], '\\n')",
                labelLimit=400,
                labelPadding=8,
                ticks=False,
                domain=False,
                labelColor=_INK,
                labelBaseline="middle",
            ),
        )
        kinds = ["distilled", "baseline", "network"]
        color = alt_.Color("kind:N", scale=alt_.Scale(domain=kinds, range=[_BLUE, _VERMILION, _MUTED]), legend=None)
        shape = alt_.Shape("kind:N", scale=alt_.Scale(domain=kinds, range=["circle", "square", "diamond"]), legend=None)
        base = alt_.Chart(alt_.Data(values=entries))
        networks = alt_.Chart(alt_.Data(values=[entry for entry in entries if entry["kind"] == "network"]))
        dots = alt_.Chart(alt_.Data(values=students))
        return alt_.layer(
            networks.mark_rule(strokeDash=[3, 4], color=_MUTED, opacity=0.7).encode(x=alt_.X("mean:Q", scale=x_scale, axis=x_axis)),
            dots.mark_point(size=22, filled=True, opacity=0.4, yOffset=9, aria=False).encode(
                x=alt_.X("accuracy:Q", scale=x_scale), y=y, color=color, shape=shape
            ),
            base.mark_rule(strokeWidth=2.5).encode(x=alt_.X("low:Q", scale=x_scale), x2="high:Q", y=y, color=color),
            base.mark_point(size=95, filled=True, opacity=1, stroke=_PAPER, strokeWidth=1.2).encode(
                x=alt_.X("mean:Q", scale=x_scale), y=y, color=color, shape=shape
            ),
            base.mark_text(align="right", fontSize=12, fontWeight=600, color=_INK).encode(x=alt_.value(plot_width + 78), y=y, text="text:N"),
        ).properties(width=plot_width, height=row_height * len(rows))

    return Figure("accuracy", f"Students on the test split, 95 % intervals: {title}", alt, build)


def snapshots_figure(expert: Mapping[str, Any], title: str) -> Figure | None:
    """Expert accuracy, student accuracy and label entropy against the expert's snapshots, all on validation; None when fewer than two are known."""
    snapshots = [entry for entry in expert.get("snapshots") or () if entry.get("accuracy") is not None]
    if len(snapshots) < 2:
        return None
    epochs = {entry["step"]: float(entry["epoch"]) for entry in snapshots}
    trials = [trial for trial in expert.get("trials") or () if trial["candidate"] in epochs and trial.get("mean") is not None]
    fractions = sorted({float(trial["fraction"]) for trial in trials})
    series = {fraction: f"students, {words.percent(fraction, 0)} % of training" for fraction in fractions}
    names = ["expert", *series.values()]
    # the last rung always looks the same; of more than three, the early ones share a style
    rungs = [_RUNGS[max(0, len(_RUNGS) - len(fractions) + i)] for i in range(len(fractions))]
    colors, shapes = [_BLUE, *(color for color, _ in rungs)], ["circle", *(shape for _, shape in rungs)]
    accuracy = [{"epoch": epochs[entry["step"]], "accuracy": 100 * entry["accuracy"], "series": "expert"} for entry in snapshots]
    accuracy += [
        {"epoch": epochs[trial["candidate"]], "accuracy": 100 * trial["mean"], "series": series[float(trial["fraction"])]} for trial in trials
    ]
    entropy = [{"epoch": epochs[entry["step"]], "entropy": entry["entropy"]} for entry in snapshots if entry.get("entropy") is not None]
    chosen = expert.get("chosen_step")
    mark: list[dict[str, Any]] = [{"epoch": epochs[chosen], "text": f"chosen: step {chosen:,}"}] if chosen in epochs else []
    smallest = min((value for value in epochs.values() if value > 0), default=1.0)
    ticks = _epoch_ticks(sorted(epochs.values()))
    last = max(epochs.values())

    def build(width: int) -> Any:
        import altair as alt_

        wide = width >= 600
        plot_width = width - (90 if wide else 84)
        scale = alt_.Scale(type="symlog", constant=smallest, domain=[0, last], nice=False, padding=10)
        expression = " : ".join(f"abs(datum.value - {value!r}) < 1e-9 ? '{label}'" for value, label in ticks) + " : ''"
        lower_axis = alt_.Axis(
            values=[value for value, _ in ticks],
            labelExpr=expression,
            title="epochs of the expert's training (0 = untrained; logarithmic)",
            labelOverlap="greedy",
        )
        bare_axis = alt_.Axis(values=[value for value, _ in ticks], labels=False, ticks=False, title=None)
        color = alt_.Color("series:N", sort=names, scale=alt_.Scale(domain=names, range=colors), legend=_legend(wide))
        shape = alt_.Shape("series:N", sort=names, scale=alt_.Scale(domain=names, range=shapes), legend=_legend(wide))

        def rule(text: bool) -> list[Any]:
            base = alt_.Chart(alt_.Data(values=mark))
            late = bool(mark) and mark[0]["epoch"] > 0.5 * last
            line = base.mark_rule(strokeDash=[4, 3], color=_INK, strokeWidth=1.2).encode(x=alt_.X("epoch:Q", scale=scale))
            note = base.mark_text(
                align="right" if late else "left", dx=-5 if late else 5, fontSize=12, fontWeight=600, color=_INK, baseline="bottom"
            ).encode(x=alt_.X("epoch:Q", scale=scale), y=alt_.value(-3), text="text:N")
            return [line, note] if text else [line]

        points = alt_.Chart(alt_.Data(values=accuracy))
        x = alt_.X("epoch:Q", scale=scale, axis=bare_axis)
        y = alt_.Y("accuracy:Q", title="validation accuracy (%)", scale=alt_.Scale(zero=False, nice=True), axis=alt_.Axis(tickCount=6))
        upper = alt_.layer(
            *rule(True),
            points.mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
            points.mark_point(size=58, filled=True, opacity=1, stroke=_PAPER, strokeWidth=0.8).encode(x=x, y=y, color=color, shape=shape),
        ).properties(width=plot_width, height=270 if wide else 220)
        if not entropy:
            return upper.encode(x=alt_.X("epoch:Q", scale=scale, axis=lower_axis))
        levels = alt_.Chart(alt_.Data(values=entropy)).encode(
            x=alt_.X("epoch:Q", scale=scale, axis=lower_axis),
            y=alt_.Y("entropy:Q", title=["label entropy", "(nats)"], scale=alt_.Scale(zero=True, nice=True), axis=alt_.Axis(tickCount=4)),
        )
        lower = alt_.layer(
            *rule(False), levels.mark_line(color=_BLUE, strokeWidth=2), levels.mark_point(color=_BLUE, size=45, filled=True, opacity=1)
        ).properties(width=plot_width, height=110)
        return alt_.vconcat(upper, lower, spacing=14).resolve_scale(x="shared")

    return Figure(
        "snapshots", f"What each snapshot of the expert teaches, on validation: {title}", _snapshot_words(snapshots, trials, epochs, chosen), build
    )


def label_matrix_figure(softness: Softness, classes: Sequence[str], title: str) -> Figure | None:
    """Mean soft label of each owner class, the own class left blank; None above 100 classes."""
    count = len(classes)
    if count > _MOST_CLASSES:
        return None
    values = softness.mean_label.tolist()
    cells = [
        {"owner": owner, "other": other, "p": values[owner][other]}
        for owner in range(count)
        for other in range(count)
        if owner != other and values[owner][other] >= _LEAST_SHOWN
    ]
    top = max((cell["p"] for cell in cells), default=1.0)
    pairs = "; ".join(f"{classes[owner]} to {classes[other]} {value:.2f}" for owner, other, value in softness.shared(3))
    alt = f"Heat map of the mean soft label of the images of each class over the {count} classes, own class left blank. Largest entries: {pairs or 'none'}."

    def build(width: int) -> Any:
        import altair as alt_

        wide = width >= 600
        limit = 110 if wide else 62
        plot_width = min(width - limit - 30 - (110 if wide else 0), 70 * count if wide else width)
        step = plot_width / count
        names = [_shortened(name, 22 if wide else 10) for name in classes]
        label = f"{json.dumps(names)}[datum.value]"
        horizontal = step >= 62 and max(map(len, names)) * 6.2 < step
        font = 12 if step >= 16 and wide else 10
        shared: dict[str, Any] = {
            "labelExpr": label,
            "labelLimit": limit,
            "labelOverlap": "greedy",
            "labelFontSize": font,
            "ticks": False,
            "domain": False,
            "grid": False,
            "labelColor": _INK,
        }
        x = alt_.X(
            "other:O",
            scale=alt_.Scale(domain=list(range(count)), paddingInner=0.04 if count <= 40 else 0),
            axis=alt_.Axis(title="soft label for", labelAngle=0 if horizontal else -90, **shared),
        )
        y = alt_.Y(
            "owner:O",
            scale=alt_.Scale(domain=list(range(count)), paddingInner=0.04 if count <= 40 else 0),
            axis=alt_.Axis(title="images of", **shared),
        )
        opacity = alt_.Opacity(
            "p:Q",
            scale=alt_.Scale(type="sqrt", domain=[0, top], range=[0, 1]),
            legend=alt_.Legend(
                title="mean probability",
                orient="right" if wide else "top",
                direction="vertical" if wide else "horizontal",
                symbolType="square",
                symbolSize=180,
                symbolFillColor=_BLUE,
                symbolStrokeColor=_LINE,
                format=".3~g",
                values=[value for value in _PROBABILITIES if value <= top][-4:] or [top],
            ),
        )
        diagonal = [{"owner": number, "other": number} for number in range(count)]
        blank = alt_.Chart(alt_.Data(values=diagonal)).mark_rect(fill=_LINE, fillOpacity=0.6, aria=False).encode(x=x, y=y)
        layers = [blank, alt_.Chart(alt_.NamedData(name="cells")).mark_rect(fill=_BLUE, aria=False).encode(x=x, y=y, opacity=opacity)]
        if step >= 34 and count <= 20:
            shown = [
                {**cell, "text": f"{cell['p']:.2f}".lstrip("0"), "ink": _PAPER if cell["p"] / top > 0.42 else _INK}
                for cell in cells
                if cell["p"] >= 0.005
            ]
            text = alt_.Chart(alt_.Data(values=shown)).mark_text(fontSize=11 if step >= 44 else 10, aria=False)
            layers.append(text.encode(x=x, y=y, text="text:N", color=alt_.Color("ink:N", scale=None)))
        return alt_.layer(*layers).properties(width=plot_width, height=step * count * (0.62 if wide and count <= 20 else 1))

    return Figure("label-matrix", f"Mean soft label of each class: {title}", alt, build, {"cells": cells})


def entropy_figure(softness: Softness, classes: int, title: str) -> Figure:
    """Histogram of the images' label entropy, from 0 (hard) to the logarithm of the number of classes (uniform)."""
    limit, bins = math.log(classes), 24
    heights = [0] * bins
    for value in softness.entropy.tolist():
        heights[min(int(value / limit * bins), bins - 1)] += 1
    bars = [{"from": limit * i / bins, "to": limit * (i + 1) / bins, "images": height} for i, height in enumerate(heights) if height]
    mean = float(softness.entropy.double().mean())
    counted = words.count(len(softness.entropy), "image")
    alt = f"Histogram of label entropy over {counted}: mean {mean:.2f} nats, where 0 is a hard label and {limit:.2f} a uniform one."

    def build(width: int) -> Any:
        import altair as alt_

        plot_width = width - 75
        scale = alt_.Scale(domain=[0, limit], nice=False)
        axis = alt_.Axis(
            title=f"entropy of an image's label (nats); uniform over {classes:,} classes = {limit:.2f}", tickCount=6, titleLimit=plot_width + 40
        )
        if width < 600:
            axis = alt_.Axis(title=["entropy of an image's label (nats)", f"uniform over {classes:,} classes = {limit:.2f}"], tickCount=5)
        counts = alt_.Axis(title="images", tickCount=4, tickMinStep=1, format="d")
        base = alt_.Chart(alt_.Data(values=bars))
        note = alt_.Chart(alt_.Data(values=[{"mean": mean, "text": f"mean {mean:.2f}"}]))
        right = mean < 0.7 * limit
        return alt_.layer(
            base.mark_bar(color=_BLUE, binSpacing=1).encode(
                x=alt_.X("from:Q", scale=scale, axis=axis, bin="binned"),
                x2="to:Q",
                y=alt_.Y("images:Q", axis=counts, scale=alt_.Scale(domain=[0, 1.06 * max(heights)], nice=False)),
            ),
            note.mark_rule(color=_INK, strokeDash=[4, 3], strokeWidth=1.2).encode(x=alt_.X("mean:Q", scale=scale)),
            note.mark_text(
                align="left" if right else "right", dx=5 if right else -5, baseline="bottom", fontSize=12, fontWeight=600, color=_INK
            ).encode(x=alt_.X("mean:Q", scale=scale), y=alt_.value(-3), text="text:N"),
        ).properties(width=plot_width, height=150)

    return Figure("label-entropy", f"How soft the labels are: {title}", alt, build)


def _styled(chart: Any) -> Any:
    axis: dict[str, Any] = {
        "gridColor": _LINE,
        "domainColor": _MUTED,
        "tickColor": _MUTED,
        "labelColor": _MUTED,
        "titleColor": _MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    return (
        chart.properties(background=_PAPER, padding={"left": 6, "right": 8, "top": 8, "bottom": 6})
        .configure(font=_FONT)
        .configure_view(stroke=None)
        .configure_axis(**axis, titleFontWeight="normal", titlePadding=10)
        .configure_legend(labelColor=_INK, titleColor=_MUTED, labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelLimit=260)
        .configure_title(color=_INK, fontSize=15, anchor="start", fontWeight=600, offset=14)
    )


def _legend(wide: bool) -> Any:
    import altair as alt_

    return alt_.Legend(title=None, orient="top", direction="horizontal" if wide else "vertical", offset=22, symbolSize=70, columns=4 if wide else 1)


def _rename_ids(svg: str, prefix: str) -> str:
    names = {name: f"{prefix}-{number}" for number, name in enumerate(dict.fromkeys(re.findall(r'\sid="([^"]+)"', svg)))}
    for old, new in names.items():
        svg = svg.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})").replace(f'href="#{old}"', f'href="#{new}"')
    return svg


def _wrapped(entry: Mapping[str, Any], width: int) -> str:
    lines = textwrap.wrap(entry["name"], width, max_lines=3, placeholder=" …") or ["(unnamed)"]
    return "\n".join(lines + textwrap.wrap(entry["detail"], width, max_lines=3, placeholder=" …"))


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _in_brackets(row: Row, model: bool, protocol: bool) -> str:
    parts = [row.model] * (model and bool(row.repeats)) + [row.protocol_text] * (protocol and bool(row.repeats))
    return f" ({', '.join(parts)})" if parts else ""


def _epoch_ticks(epochs: Sequence[float]) -> list[tuple[float, str]]:
    """Snapshots' own epochs as ticks: fractions below one, then doubling, so that they are evenly spaced on the logarithmic part, and the last."""
    ticks: list[tuple[float, str]] = []
    for value in epochs:
        if value and value < 1:
            part = 1 / value
            ticks.append((value, f"1/{part:.0f}"))
        elif not ticks or value in (0, 1) or value >= 2 * max(ticks[-1][0], 0.5) or value == epochs[-1]:
            ticks.append((value, f"{value:g}"))
    return ticks


def _snapshot_words(
    snapshots: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], epochs: Mapping[int, float], chosen: int | None
) -> str:
    first, last = snapshots[0], snapshots[-1]
    text = (
        f"Validation accuracy of the expert goes from {words.percent(first['accuracy'])} % at epoch {first['epoch']:g} "
        f"to {words.percent(last['accuracy'])} % at epoch {last['epoch']:g}"
    )
    if first.get("entropy") is not None and last.get("entropy") is not None:
        text += f"; label entropy goes from {first['entropy']:.2f} to {last['entropy']:.2f} nats"
    if trials:
        best = max((trial for trial in trials if trial["fraction"] == max(t["fraction"] for t in trials)), key=lambda trial: trial["mean"])
        text += f"; students do best, at {words.percent(best['mean'])} %, with labels of epoch {epochs[best['candidate']]:.3g}"
    return text + (f". Chosen: step {chosen:,}." if chosen is not None else ".")
