"""Writes ``docs/results/audit.md`` from the audits in ``benchmarks/results/audit``: ``python -m benchmarks.audit_page``.

To add an audit, copy its ``audit.json`` there under a name of its own; the page shows the command that made it.
"""

import json
from pathlib import Path
from typing import Any

from limbeck.report.words import duration

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "audit"
HEAD = """# Audits, measured

Generated from the records in `benchmarks/results/audit` by `python -m benchmarks.audit_page`. Exposure is the students' accuracy on the drawn labels of
canaries minus that on as many controls, in percentage points, with Newcombe's 95 % interval (given the expert) and the exact one-sided p-value; "leak from"
is the smallest exposure that counts as a leak. The last columns say what the expert itself knows of the canaries, and the students' test accuracy.
[Reading an audit](../audit.md) explains every column.
"""
ROLES = {"published": "as published", "hard": "hard labels (control)", "shuffled": "shuffled in classes (control)"}


def main() -> None:
    """Writes the page."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUNS.glob("*.json"))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record["source"]["name"]), []).append(record)
    parts = [HEAD]
    for source, group in groups.items():
        parts += [f"## {source}\n", *filter(None, (exposure_table(group), membership_table(group), frontier_table(group))), "### Commands\n"]
        for record in group:
            about = f"{duration(record['seconds'])}, {record['machine']}"
            parts.append(f"- {record['verdict']} (exit code {record['exit_code']}): `{record['command']}` ({about})")
        parts.append("")
    target = ROOT / "docs" / "results" / "audit.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts), encoding="utf-8")


def setting(record: dict[str, Any]) -> str:
    """``100 images, tau 4, last expert``."""
    temperature = record["label_rule"]["temperature"]
    return f"{sum(record['counts'])} images of {record['train_images']:,}, temperature {temperature:g}, {record['options']['snapshot']} snapshot"


def exposure_table(group: list[dict[str, Any]]) -> str:
    """One row for each setting, arm and kind of labels."""
    lines = [
        "| set | arm | labels | exposure | 95 % interval | p | leak from | verdict | canaries | expert on canaries % | expert on controls % | test accuracy % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in group:
        for row in record["exposures"]:
            expert = record["expert"] or {}
            known = [f"{100 * expert[key]:.1f}" if expert else "–" for key in ("canary", "control")]
            cells = [
                setting(record),
                row["arm"],
                ROLES[row["role"]],
                f"{100 * row['value']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                f"{row['p_value']:.2g}",
                f"{100 * row['critical']:.1f}",
                row["verdict"],
                str(row["canaries"]),
                *known,
                f"{100 * row['accuracy']:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def membership_table(group: list[dict[str, Any]]) -> str | None:
    """One row for each attack, where worlds were made."""
    lines = [
        "| set | attack on | area | 95 % interval | p | found at 0.1 % false positives | found at 1 % | non-members | worlds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in group:
        for name, found in (record["attacks"].get("attacks") or {}).items():
            rates = [
                f"{100 * found['rates'][rate]['tpr']:.1f} % ({100 * found['rates'][rate]['low']:.1f} to {100 * found['rates'][rate]['high']:.1f})"
                if found["rates"][rate]
                else "not resolvable"
                for rate in ("0.001", "0.01")
            ]
            cells = [
                setting(record),
                name,
                f"{found['auc']:.3f}",
                f"{found['auc_low']:.3f} to {found['auc_high']:.3f}",
                f"{found['p_value']:.2g}",
                *rates,
            ]
            lines.append("| " + " | ".join([*cells, f"{found['non_members']:,}", str(found["worlds"])]) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else None


def frontier_table(group: list[dict[str, Any]]) -> str | None:
    """One row for each defense that was tried."""
    lines = ["| set | defense | test accuracy % | exposure | 95 % interval | p | bytes |", "|---|---|---|---|---|---|---|"]
    for record in group:
        for row in record["frontier"]:
            if "note" in row:
                lines.append(f"| {setting(record)} | {row['defense']} | {row['note']} | – | – | – | – |")
                continue
            cells = [setting(record), row["defense"], f"{100 * row['accuracy']:.1f}", f"{100 * row['value']:+.1f}"]
            cells += [f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}", f"{row['p_value']:.2g}", f"{row['bytes']['total']:,}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else None


if __name__ == "__main__":
    main()
