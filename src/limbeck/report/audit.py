"""The page of an audit: verdicts in words first, then the numbers behind each, for a reader who has to decide whether a set may be published."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import limbeck
from limbeck import store
from limbeck.report import words
from limbeck.report.figures import NARROW, PALETTE, WIDE, Figure
from limbeck.report.page import environment
from limbeck.types.finding import p_words

_BLUE, _VERMILION, _MUTED, _INK, _PAPER = (PALETTE[name][0] for name in ("blue", "vermilion", "muted", "ink", "paper"))
ARMS = {"expert": "canaries in the expert's data alone", "end-to-end": "canaries in the data of expert and method"}
ROLES = {"published": "as published", "hard": "control: hard labels", "shuffled": "control: shuffled in classes"}


def write_audit_page(record: Mapping[str, Any], out: Path) -> Path:
    """Writes ``out/audit.html`` and its figures as ``out/figures/*.svg`` and ``*.png``; returns the page's path. The page needs no network and no other file."""
    html, figures = render_audit(record)
    for figure in figures:
        figure.save(out / "figures")
    page = out / "audit.html"
    store.write_text(page, html)
    return page


def render_audit(record: Mapping[str, Any]) -> tuple[str, list[Figure]]:
    """The page as text and the figures in it."""
    attacks = (record.get("attacks") or {}).get("attacks") or {}
    drawn: dict[str, Figure] = {}
    if record["exposures"]:
        drawn["exposure"] = exposure_figure(record["exposures"], record["title"])
    if attacks:
        drawn["roc"] = roc_figure(attacks, record["title"])
    tried = [row for row in record["frontier"] if "note" not in row]
    if tried:
        drawn["frontier"] = frontier_figure(tried, record["title"])
    findings = sorted(record["findings"], key=lambda found: not found["required"])
    html = (
        environment()
        .get_template("audit.html.j2")
        .render(
            record=record,
            findings=findings,
            tiles=_tiles(record, attacks),
            lead=_lead(record),
            charts={
                name: {
                    "alt": figure.alt,
                    "wide": figure.svg(WIDE, prefix=f"{name}-wide"),
                    "narrow": figure.svg(NARROW, prefix=f"{name}-narrow"),
                }
                for name, figure in drawn.items()
            },
            attacks=attacks,
            roles=ROLES,
            arms=ARMS,
            points=_points,
            interval=_interval,
            p_value=_p_value,
            palette=PALETTE,
            version=limbeck.__version__,
        )
    )
    return html, list(drawn.values())


def _points(fraction: float) -> str:
    """A difference of fractions in percentage points, signed."""
    return f"{100 * fraction:+.1f}".replace("-", words.MINUS)


def _p_value(value: float) -> str:
    """As a column of its own shows it."""
    return p_words(value).removeprefix("p ").removeprefix("= ")


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_points(row['low'])} to {_points(row['high'])}"


def _lead(record: Mapping[str, Any]) -> str:
    """The verdict as one sentence."""
    required = [found for found in record["findings"] if found["required"]]
    count = {verdict: sum(found["verdict"] == verdict for found in required) for verdict in ("leak", "inconclusive", "not checked", "clean")}
    if record["verdict"] == "leak":
        return f"{count['leak']} of {words.count(len(required), 'required check')} found a leak: what this audit was asked about should not be published as it is."
    if record["verdict"] == "clean":
        return (
            f"All {words.count(len(required), 'required check')} are clean, at a false-alarm rate of {100 * record['alpha']:g} % for the whole audit. This speaks "
            "of the attacks that were tried and of effects of the stated size, and is no proof."
        )
    open_ones = words.listing(
        words.count(count[verdict], f"check {verdict}", f"checks {verdict}") for verdict in ("inconclusive", "not checked") if count[verdict]
    )
    return f"Nothing can be concluded yet: of {words.count(len(required), 'required check')}, {open_ones}."


def _tiles(record: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    tiles = [{"label": "verdict", "value": record["verdict"], "note": f"exit code {record['exit_code']}"}]
    published = [row for row in record["exposures"] if row["role"] == "published"]
    if published:
        worst = max(published, key=lambda row: row["value"])
        tiles.append(
            {"label": "exposure, points", "value": _points(worst["value"]), "note": f"95 % interval {_interval(worst)}; {ARMS[worst['arm']]}"}
        )
        tiles.append(
            {"label": "students’ test accuracy, %", "value": words.percent(worst["accuracy"]), "note": f"{worst['test_images']:,} test images"}
        )
    if attacks:
        name, best = max(attacks.items(), key=lambda entry: entry[1]["auc"])
        tiles.append({"label": "best membership attack, area", "value": f"{best['auc']:.3f}", "note": f"{name}; 0.5 is chance"})
    if record.get("expert"):
        expert = record["expert"]
        tiles.append(
            {
                "label": "expert on canaries, %",
                "value": words.percent(expert["canary"]),
                "note": f"and {words.percent(expert['control'])} % on controls: what there is to leak",
            }
        )
    tiles.append({"label": "published", "value": words.size(record["bytes"]["total"]), "note": words.count(sum(record["counts"]), "image")})
    return tiles


def exposure_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Exposure of every arm and role as a dot with its interval, and the value from which it counts as a leak as a tick."""
    entries = [
        {
            "place": place,
            "value": 100 * row["value"],
            "low": 100 * row["low"],
            "high": 100 * row["high"],
            "critical": 100 * row["critical"],
            "kind": "published" if row["role"] == "published" else "control",
            "text": _points(row["value"]),
        }
        for place, row in enumerate(rows)
    ]
    names = [f"{row['arm'].replace('-', ' ')}\n{ROLES[row['role']]}" for row in rows]
    spoken = "; ".join(f"{row['arm']}, {ROLES[row['role']]}: {_points(row['value'])} points ({_interval(row)})" for row in rows)

    def build(width: int) -> Any:
        import altair as alt_

        plot_width = width - (240 if width >= 600 else 150) - 60
        label = f"split({json.dumps(names)}[datum.value], '\\n')"
        y = alt_.Y("place:O", title=None, axis=alt_.Axis(labelExpr=label, labelLimit=240, ticks=False, domain=False, labelColor=_INK, labelPadding=8))
        kinds = ["published", "control"]
        color = alt_.Color("kind:N", scale=alt_.Scale(domain=kinds, range=[_VERMILION, _BLUE]), legend=None)
        shape = alt_.Shape("kind:N", scale=alt_.Scale(domain=kinds, range=["circle", "square"]), legend=None)
        axis_title = "exposure (percentage points above the controls)"
        base = alt_.Chart(alt_.Data(values=entries))
        x = alt_.X("value:Q", title=axis_title, axis=alt_.Axis(tickCount=8 if width >= 600 else 4))
        return alt_.layer(
            alt_.Chart(alt_.Data(values=[{"zero": 0}])).mark_rule(color=_MUTED, strokeWidth=1).encode(x=alt_.X("zero:Q", title=axis_title)),
            base.mark_rule(strokeWidth=2.5).encode(x=alt_.X("low:Q", title=axis_title), x2="high:Q", y=y, color=color),
            base.mark_tick(color=_INK, thickness=2, size=20).encode(x=alt_.X("critical:Q", title=axis_title), y=y),
            base.mark_point(size=95, filled=True, opacity=1, stroke=_PAPER, strokeWidth=1.2).encode(x=x, y=y, color=color, shape=shape),
            base.mark_text(align="right", fontSize=12, fontWeight=600, color=_INK).encode(x=alt_.value(plot_width + 58), y=y, text="text:N"),
        ).properties(width=plot_width, height=46 * len(entries))

    return Figure("exposure", f"Exposure with 95 % intervals; a leak from the black tick on: {title}", f"Exposure. {spoken}.", build)


def roc_figure(attacks: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """True-positive against false-positive rate of every attack, both logarithmic: what matters is how many members are found when few alarms are false."""
    least = min(1 / found["non_members"] for found in attacks.values())
    entries = [{"f": f, "t": t, "attack": name} for name, found in attacks.items() for f, t in found["curve"] if f > 0 and t > 0]
    spoken = "; ".join(f"{name}: area {found['auc']:.3f}" for name, found in attacks.items())

    def build(width: int) -> Any:
        import altair as alt_

        side = min(width - 80, 460)
        scale = alt_.Scale(type="log", domain=[least, 1], clamp=True)
        names = list(attacks)
        x = alt_.X("f:Q", scale=scale, title="false-positive rate", axis=alt_.Axis(tickCount=4, format="~g"))
        y = alt_.Y("t:Q", scale=scale, title="true-positive rate", axis=alt_.Axis(tickCount=4, format="~g"))
        legend = alt_.Legend(title=None, orient="top", direction="horizontal" if width >= 600 else "vertical")
        color = alt_.Color("attack:N", sort=names, scale=alt_.Scale(domain=names, range=[_VERMILION, _BLUE, _INK][: len(names)]), legend=legend)
        dash = alt_.StrokeDash("attack:N", sort=names, scale=alt_.Scale(domain=names, range=[[1, 0], [6, 4], [2, 3]][: len(names)]), legend=legend)
        chance = alt_.Chart(alt_.Data(values=[{"f": least, "t": least}, {"f": 1, "t": 1}]))
        return alt_.layer(
            chance.mark_line(color=_MUTED, strokeWidth=1).encode(x=x, y=y),
            alt_.Chart(alt_.Data(values=entries)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash),
        ).properties(width=side, height=side * 0.75)

    return Figure("roc", f"Membership inference; the gray line is guessing: {title}", f"Curves of membership inference. {spoken}.", build)


def frontier_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Test accuracy against exposure of every defense: up and to the left is better."""
    entries = [
        {
            "exposure": 100 * row["value"],
            "low": 100 * row["low"],
            "high": 100 * row["high"],
            "accuracy": 100 * row["accuracy"],
            "kind": "published" if row["kind"] == "none" else "defense",
            "name": row["defense"],
        }
        for row in rows
    ]
    spoken = "; ".join(f"{row['defense']}: accuracy {words.percent(row['accuracy'])} %, exposure {_points(row['value'])} points" for row in rows)

    def build(width: int) -> Any:
        import altair as alt_

        plot_width = width - 90
        base = alt_.Chart(alt_.Data(values=entries))
        axis_title = "exposure (percentage points above the controls)"
        x = alt_.X("exposure:Q", title=axis_title, scale=alt_.Scale(zero=True, nice=True, padding=12))
        y = alt_.Y("accuracy:Q", title="students’ test accuracy (%)", scale=alt_.Scale(zero=False, nice=True, padding=12))
        domain = ["published", "defense"]
        color = alt_.Color("kind:N", scale=alt_.Scale(domain=domain, range=[_VERMILION, _BLUE]), legend=None)
        shape = alt_.Shape("kind:N", scale=alt_.Scale(domain=domain, range=["circle", "square"]), legend=None)
        return alt_.layer(
            base.mark_rule(strokeWidth=1.2, opacity=0.5).encode(x=alt_.X("low:Q", title=axis_title), x2="high:Q", y=y, color=color),
            base.mark_point(size=80, filled=True, opacity=1, stroke=_PAPER, strokeWidth=1).encode(x=x, y=y, color=color, shape=shape),
            base.mark_text(align="left", dx=8, dy=-7, fontSize=11, color=_INK).encode(x=x, y=y, text="name:N"),
        ).properties(width=plot_width, height=340 if width >= 600 else 300)

    return Figure("frontier", f"Defenses, each alone: {title}", f"Defenses. {spoken}.", build)
