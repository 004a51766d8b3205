"""One self-contained HTML file about a run, and its figures as files."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import limbeck
from limbeck import store
from limbeck.methods.driver import stopped_words
from limbeck.report import words
from limbeck.report.figures import NARROW, PALETTE, WIDE, Figure, accuracy_figure, entropy_figure, label_matrix_figure, snapshots_figure
from limbeck.report.gallery import Gallery, contact_sheet, make_gallery
from limbeck.report.softness import Softness, softness
from limbeck.report.summary import protocol_note, summarize
from limbeck.report.tables import accuracy_rows, expert_use, gains, seconds_text
from limbeck.types.distilled import DistilledDataset

_EXAMPLES, _EXAMPLE_ENTRIES = 6, 5
_SHARED_PAIRS = 8


def write_report(record: Mapping[str, Any], dataset: DistilledDataset | None, out: Path) -> Path:
    """Writes ``out/report.html`` and its figures as ``out/figures/*.svg`` and ``*.png``; returns the page's path.

    `record` is the content of a run's ``result.json``; `dataset` its distilled set, without which images and labels are left out. The page needs no network
    and no other file, its content security policy forbids both, and equal records and sets give equal bytes. Raises `FileFormatError` for a record of another
    format and `LimbeckError` where `out` cannot be written.
    """
    out = Path(out)
    html, figures = render(record, dataset)
    for figure in figures:
        figure.save(out / "figures")
    if dataset is not None:
        sheet = contact_sheet(dataset)
        store.write_atomically(out / "figures" / "images.png", lambda temporary: sheet.save(temporary, format="PNG"))
    page = out / "report.html"
    store.write_text(page, html)
    return page


def render(record: Mapping[str, Any], dataset: DistilledDataset | None) -> tuple[str, list[Figure]]:
    """The page as text and the figures in it."""
    rows, found = accuracy_rows(record), gains(record)
    title = str(record.get("title") or f"{record['source'].get('name', 'unnamed source')}, {record['method']}")
    soft = None if dataset is None else softness(dataset)
    expert = {**record["expert"], "use": expert_use(record["expert"])} if record.get("expert") else {}
    figures: dict[str, Figure | None] = {
        "accuracy": accuracy_figure(rows, title) if rows else None,
        "snapshots": snapshots_figure(expert, title),
        "label-matrix": label_matrix_figure(soft, dataset.classes, title) if soft is not None and dataset is not None else None,
        "label-entropy": entropy_figure(soft, len(dataset.classes), title) if soft is not None and dataset is not None else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    gallery = None if dataset is None else make_gallery(dataset)
    html = (
        environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            record=record,
            rows=rows,
            gains=found,
            summary=summarize(record, rows, found),
            protocols=[(label, protocol_note(label)) for label in dict.fromkeys(row.protocol for row in rows if row.repeats)],
            charts={name: chart_of(figure) for name, figure in drawn.items()},
            expert=expert,
            gallery=gallery,
            examples=[] if gallery is None else [(group, picture.top(_EXAMPLE_ENTRIES)) for group, picture in gallery.examples(_EXAMPLES)],
            labels_data=[] if gallery is None else _labels_data(gallery),
            softness=soft,
            shared=_shared(soft, dataset),
            classes=() if dataset is None else dataset.classes,
            label_kind=None if dataset is None else dataset.labels.kind,
            facts=_facts(record),
            details=_details(record),
            palette=PALETTE,
            version=limbeck.__version__,
        )
    )
    return html, list(drawn.values())


def environment() -> jinja2.Environment:
    """The templates of all pages, with their filters."""
    folder = resources.files("limbeck.report") / "templates"
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(size=words.size, percent=words.percent, duration=words.duration, pretty=_pretty, tight=_tight)
    made.globals.update(count=words.count, dash=words.DASH, bar_text=_bar_text)
    return made


def chart_of(figure: Figure) -> dict[str, str]:
    """What the template of a chart is given: the figure for wide and for narrow screens, and its words."""
    return {
        "alt": figure.alt,
        "wide": figure.svg(WIDE, prefix=f"{figure.name}-wide"),
        "narrow": figure.svg(NARROW, prefix=f"{figure.name}-narrow"),
    }


def _labels_data(gallery: Gallery) -> list[dict[str, Any]]:
    """What the script shows for each image; the same order as the images in the page."""
    shown = []
    for picture in gallery.pictures:
        bars = [[bar.name, _bar_text(bar.value), bar.length, int(bar.own), int(bar.value < 0)] for bar in picture.bars]
        shown.append({"bars": bars, "rest": _bar_text(picture.rest) if picture.rest else None})
    return shown


def _bar_text(value: float) -> str:
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}".replace("-", words.MINUS)


def _shared(soft: Softness | None, dataset: DistilledDataset | None) -> list[tuple[str, str, float]]:
    if soft is None or dataset is None:
        return []
    return [(dataset.classes[owner], dataset.classes[other], value) for owner, other, value in soft.shared(_SHARED_PAIRS)]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The short part of the provenance, as far as the record has it."""
    source = record["source"]
    split = [
        words.count(source[key], f"{name} image")
        for key, name in (("train", "training"), ("validation", "validation"), ("test", "test"))
        if source.get(key)
    ]
    times = [f"{name} {seconds_text(record, name)}" for name, value in (record.get("seconds") or {}).items() if value is not None]
    facts = [
        ("Source", f"{source.get('name', '')}: {words.listing(split)}" if split else str(source.get("name", ""))),
        ("Method", str(record["method"])),
        ("Labels", words.label_rule(record["label_rule"], len(record["counts"]))),
        ("Steps", _steps(record)),
        ("Seed", str(record.get("seed", ""))),
        ("Digest of the set", str(record.get("digest") or "")),
        ("Time", ", ".join(times)),
        ("Machine", str(record.get("machine") or "")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())),
    ]
    return [(name, value) for name, value in facts if value]


def _steps(record: Mapping[str, Any]) -> str:
    taken = record.get("optimization") or {}
    if "total" in taken:
        return stopped_words(taken["steps"], taken["total"])
    return f"{taken['steps']:,}" if taken else ""


def _details(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The long part: titles and plain values to print as JSON."""
    recipes = {
        f"{entry.get('name')} · {entry.get('model')} · {entry.get('protocol')}": {
            key: entry.get(key) for key in ("recipe", "plan", "seed", "sets", "test_digest")
        }
        for entry in record.get("evaluations") or ()
    }
    expert = record.get("expert") or {}
    parts = [
        ("Expert’s training recipe", expert.get("recipe")),
        ("Every trial of the choice", expert.get("trials")),
        ("Students’ recipes, plans and digests", recipes),
        ("Execution plan", record.get("plan")),
        ("Provenance of the set", record.get("provenance")),
        ("Complete record (result.json)", record),
    ]
    return [(name, value) for name, value in parts if value]


def _tight(text: str) -> str:
    """A per cent sign stays on its number's line."""
    return text.replace(" %", "\u00a0%")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
