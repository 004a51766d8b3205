"""The report of a study: each claim with what is expected, what was measured and the verdict; and the figures. One Markdown file, one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import limbeck
from limbeck import store
from limbeck.report import words
from limbeck.report.analysis import SERIES, plot_figure, scalar_text
from limbeck.report.figures import PALETTE, Figure
from limbeck.report.page import chart_of, environment
from limbeck.study.running import LEDGER, ROWS, Findings, Run
from limbeck.study.view import REPEATS

_MARKS = {"holds": "✓", "fails": "✗", "undecided": "?", "not measured": "–", "not asked on this scale": "–"}


def write_study_report(run: Run) -> Path:
    """Writes ``report.html``, ``report.md`` and ``figures/`` into the run's folder; returns the page's path. The page needs no network and no other file."""
    findings = run.findings()
    figures = _figures(findings)
    for figure in (figure for drawn in figures.values() for figure in drawn):
        figure.save(run.out / "figures")
    store.write_text(run.out / "report.md", _markdown(run, findings, figures))
    page = run.out / "report.html"
    html = (
        environment()
        .get_template("study.html.j2")
        .render(
            study=run.study.file,
            scale=run.scale,
            settings=run.study.scale(run.scale),
            claims=_claims(run, findings),
            marks=_MARKS,
            sections=_sections(findings, figures),
            tasks=run.counts(),
            facts=_facts(run),
            content=run.study.content,
            palette={**PALETTE, **SERIES},
            version=limbeck.__version__,
        )
    )
    store.write_text(page, html)
    return page


def _claims(run: Run, findings: Findings) -> list[dict[str, str]]:
    """Each claim of the study with its verdict; one that is not asked on this scale too, so that nobody takes it for forgotten."""
    made = []
    for claim in run.study.file.claims:
        answer, measured = findings.answer(claim.id)
        interval = findings.verdicts[claim.id].interval if claim.id in findings.verdicts else None
        covers = f"{interval.covers}, n = {interval.n}" if interval else ""
        made.append({"id": claim.id, "sentence": claim.sentence, "expected": claim.expected, "answer": answer, "words": measured, "covers": covers})
    return made


def _figures(findings: Findings) -> dict[str, list[Figure]]:
    """The drawings of each analysis, by its id."""
    return {
        name: [figure for figure in (plot_figure(measurement, plot) for plot in plots) if figure is not None]
        for name, (measurement, plots) in findings.analyses.items()
    }


def _sections(findings: Findings, figures: Mapping[str, Sequence[Figure]]) -> list[dict[str, Any]]:
    """For each analysis: its charts, how to read them, its scalars and its notes."""
    found = []
    for name, (measurement, plots) in findings.analyses.items():
        quantities = measurement.quantities
        found.append(
            {
                "id": name,
                "title": measurement.title,
                "charts": [{"title": figure.title, **chart_of(figure)} for figure in figures[name]],
                "reading": " ".join(dict.fromkeys(plot.reading for plot in plots if plot.reading)),
                "covers": "; ".join(dict.fromkeys(quantity.covers for quantity in quantities.values() if quantity.covers)),
                "scalars": [(key.replace("_", " "), scalar_text(quantity)) for key, quantity in quantities.items() if not quantity.values.ndim],
                "notes": measurement.notes,
            }
        )
    return found


def _facts(run: Run) -> list[tuple[str, str]]:
    scale, rows = run.study.scale(run.scale), list(run.ledger.rows.values())
    versions = sorted({", ".join(f"{name} {version}" for name, version in sorted(row["versions"].items())) for row in rows})
    machines = sorted({" ".join(row["machine"].get(name, "") for name in ("system", "architecture", "cpu")).strip() for row in rows})
    return [
        ("Source", f"{scale.source}: {scale.data.train:,} training and {scale.data.test:,} test images of {scale.data.classes} classes"),
        ("Students", f"{scale.students} of {scale.model} for each set unless an arm says otherwise, protocol {scale.protocol}"),
        ("Repeats", _repeats(run)),
        ("Time of all tasks", words.duration(sum(row["seconds"] for row in rows))),
        ("Cost, as stated", scale.cost),
        ("Versions", "; ".join(versions)),
        ("Machines", "; ".join(machines)),
        ("Files", f"{LEDGER}, {ROWS}"),
    ]


def _repeats(run: Run) -> str:
    """``soft: 3 draws, 2 experts, 3 students``: how many of each the cells of every arm have."""
    described = []
    for arm in dict.fromkeys(cell.arm for cell in run.graph.cells):
        cells = [cell for cell in run.graph.cells if cell.arm == arm]
        counts = {name: len({cell.coordinates[name] for cell in cells if name in cell.coordinates}) for name in REPEATS}
        if any(cell.making.task in ("evaluate", "replay") for cell in cells):
            counts["student"] = max(cell.making.students or run.study.scale(run.scale).students for cell in cells)
        parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
        described.append(f"{arm}: {', '.join(parts) or 'once'}")
    return "; ".join(described)


def _markdown(run: Run, findings: Findings, figures: Mapping[str, Sequence[Figure]]) -> str:
    file = run.study.file
    lines = [f"# {file.title}", "", file.question, "", f"After {file.paper}. Scale: {run.scale}.", "", "## Claims", ""]
    lines += ["| claim | expected | measured (95 % interval) | covers | verdict |", "| --- | --- | --- | --- | --- |"]
    lines += [
        _cells([*(claim[name] for name in ("sentence", "expected", "words", "covers")), f"**{claim['answer']}**"]) for claim in _claims(run, findings)
    ]
    for section in _sections(findings, figures):
        lines += ["", f"## {section['title']}", ""]
        lines += [f"![{figure.alt}](figures/{figure.name}.svg)" for figure in figures[section["id"]]]
        lines += ["", *(part for part in (section["reading"], f"Intervals cover {section['covers']}." if section["covers"] else "") if part)]
        lines += [f"- {name}: {value}" for name, value in section["scalars"]] + [f"- {note}" for note in section["notes"]]
    lines += ["", "## Facts", "", *(f"- {name}: {value}" for name, value in _facts(run))]
    lines += [f"- tasks: {', '.join(f'{kind} {done} of {total}' for kind, (done, total) in run.counts().items())}"]
    if file.deviations:
        lines += ["", "## Deviations from the paper", "", *(f"- {sentence}" for sentence in file.deviations)]
    return "\n".join(lines) + "\n"


def _cells(parts: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(part.replace("|", "\\|").split()) for part in parts) + " |"
