"""Writes ``docs/results/fashion-mnist.md`` from the runs in ``benchmarks/results/fashion-mnist``: ``python -m benchmarks.methods_page``.

To add a run, copy its ``result.json`` there under a name of its own; the page shows the command that made it.
"""

import json
from pathlib import Path
from typing import Any

from limbeck.methods.parse import parse_method
from limbeck.report.tables import accuracy_rows, seconds_text
from limbeck.study.experts import label_default

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "fashion-mnist"
HEAD = """# Methods on Fashion-MNIST

Generated from the records in `benchmarks/results/fashion-mnist` by `python -m benchmarks.methods_page`. ConvNet-D3-W128 throughout. Accuracies are per cent on the
10,000 test images, last epoch, mean over students with a 95 % interval over students (the distilled set and its expert are one draw each). Bytes are those of
the file: images and labels. Every set stands beside random real images under the same protocol; students of a set that learned its rate (`mtt`) train at it, as the
column of protocols says. "Distilling" is the time of the method itself by the clock;
experts, where a method needs them, are extra ("cached": they had been trained before, and their time was not kept; the three experts of 4 epochs that `mtt` and
`tesla` share took 24 min 33 s). These runs used one of two shared cores each while other work went on, which took between a quarter and a half of the time by
the clock; numbers of steps were kept small for that reason, and are far from the published ones. Options were set beforehand, or on validation images (`frepo`,
`mtt`; `tesla` has those of `mtt`).
"""


def main() -> None:
    """Writes the page."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUNS.glob("*.json"))]
    by_ipc: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        by_ipc.setdefault(max(record["counts"]), []).append(record)
    parts = [HEAD]
    for ipc, group in sorted(by_ipc.items()):
        parts += [f"## {ipc} image{'s' if ipc != 1 else ''} per class\n", _table(group), _baselines(group), "### Commands\n"]
        parts += [f"- {record['method']}: `{record['command']}` ({record['machine']})" for record in group]
        parts.append("")
    target = ROOT / "docs" / "results" / "fashion-mnist.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts), encoding="utf-8")


def _table(group: list[dict[str, Any]]) -> str:
    lines = [
        "| method | images start as | labels | accuracy % | students | protocol | image bytes | label bytes | steps | distilling | experts and choice |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for record in group:
        own = next(row for row in accuracy_rows(record) if row.role == "distilled")
        optimization = record.get("optimization") or {}
        labels = label_default(parse_method(record["method"]))
        if labels == "soft":  # a rule is chosen only where the method learns no labels
            views = record["provenance"]["method_options"].get("views")
            labels = f"soft, {views} views" if views else record["label_rule"]["kind"]
        cells = [
            record["method"],
            record["provenance"]["method_options"].get("start", "–"),
            labels,
            own.accuracy_text,
            own.repeats_text,
            own.protocol_text or "–",
            f"{own.bytes['images']:,}" if own.bytes else "–",
            f"{own.bytes['labels']:,}" if own.bytes else "–",
            steps_text(optimization),
            seconds_text(record, "distilling"),
            seconds_text(record, "expert and choice"),
        ]
        mean = next(entry["interval_95"]["mean"] for entry in record["evaluations"] if entry["role"] == "distilled")
        rows.append((-mean, "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(line for _, line in sorted(rows))]) + "\n"


def steps_text(optimization: dict[str, Any]) -> str:
    """``2000``, or ``233 of 1200`` for a run that its budget ended."""
    if not optimization:
        return "–"
    return f"{optimization['steps']}" + (f" of {optimization['total']}" if "total" in optimization else "")


def _baselines(group: list[dict[str, Any]]) -> str:
    """Every random-real row once for each protocol and size."""
    seen: dict[tuple[Any, ...], str] = {}
    for record in group:
        for row in accuracy_rows(record):
            if row.role.startswith("random") and row.bytes:
                key = (row.role, row.protocol, row.bytes["total"])
                size = f"{row.bytes['images']:,} | {row.bytes['labels']:,}"
                seen[key] = f"| {row.name} | {row.accuracy_text} | {row.repeats_text} | {row.protocol_text} | {row.images} | {size} |"
    head = ["| baseline | accuracy % | students | protocol | images | image bytes | label bytes |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *(seen[key] for key in sorted(seen, key=str))]) + "\n"


if __name__ == "__main__":
    main()
