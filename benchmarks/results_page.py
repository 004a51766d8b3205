"""Writes ``docs/results.md`` from the records in ``benchmarks/results``: ``python -m benchmarks.results_page``.

To add a result, run a job and copy its ``result.json`` there under a name that says what it is; the page shows the command that made it.
"""

import json
from pathlib import Path
from typing import Any

from limbeck.report.tables import accuracy_rows, gains
from limbeck.report.words import duration

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Results

Generated from the records in `benchmarks/results` by `python -m benchmarks.results_page`. Every accuracy is the last epoch's on the whole test split, in
per cent, with a 95 % interval; the expert's snapshot was chosen on validation. "Random real images" are fresh draws, labeled by the same expert at the
same snapshot and temperature, or by their class alone.
"""


def section(name: str, record: dict[str, Any]) -> str:
    """One record as a Markdown section."""
    rows = accuracy_rows(record)
    lines = [f"## {record['title']}", "", f"`{record['command']}`", ""]
    lines += [
        "| trained on | model | protocol | accuracy % | trained | interval covers | images | image bytes | label bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = (f"{row.bytes['images']:,}", f"{row.bytes['labels']:,}") if row.bytes else ("–", "–")
        images = f"{row.images:,}" if row.images else "–"
        lines.append(
            f"| {row.name} | {row.model} | {row.protocol or '–'} | {row.accuracy_text} | {row.repeats_text} | {row.covers_text} | {images} | {' | '.join(sizes)} |"
        )
    lines += ["", *(f"- {gain_words(gain)}" for gain in gains(record))]
    expert = record.get("expert")
    if expert and expert.get("snapshots"):
        chosen = next(snapshot for snapshot in expert["snapshots"] if snapshot["step"] == expert["chosen_step"])
        moment = f"step {expert['chosen_step']} (epoch {chosen['epoch']:.2f}, {100 * chosen['accuracy']:.1f} % on validation)"
        lines.append(f"- The labels come from {moment}, {expert['chosen_by']}.")
        rung = [trial for trial in expert["trials"] if trial["rung"] == 0]
        if rung:
            scores = ", ".join(f"{trial['candidate']}: {100 * trial['mean']:.1f}" for trial in rung)
            lines.append(f"- Students on validation after {rung[0]['fraction']:.0%} of training, by the expert's step: {scores}.")
    if "remark" in record:
        lines.append(f"- {record['remark']}")
    seconds = record["seconds"]["total"]
    lines += [
        f"- {duration(seconds)} in all on {record['machine']}; plan of the students: {record['plan']['strategy']}, {record['plan']['precision']}.",
        "",
    ]
    return "\n".join(lines)


def gain_words(gain: Any) -> str:
    """One paired difference in words."""
    return f"Against {gain.over.name}: {gain.text} points, {gain.verdict}."


def main() -> None:
    """Writes the page."""
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))}
    sections = [section(name, record) for name, record in records.items() if "evaluations" in record]
    (ROOT / "docs" / "results.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
