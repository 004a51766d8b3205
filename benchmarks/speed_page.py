"""Writes ``docs/results/speed.md`` from the records in ``benchmarks/results/speed``: ``python -m benchmarks.speed_page``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "speed"
HEAD = """# Speed, measured

Generated from the records in `benchmarks/results/speed` by `python -m benchmarks.speed_page`; [Speed](../speed.md) says what is compared and how. Ratios are medians
over alternating rounds, with their range; "whole job" counts compiling and scales a step's time to 1,000 epochs of students or one epoch of an expert. Memory is
what a round added to the process; limbeck keeps what it freed, so its later rounds add little.
"""


def training(record: dict[str, Any]) -> str:
    """The table of one machine."""
    lines = [
        "| case | reference | limbeck | ratio | range | whole job | TFLOP/s | memory added in a round, MB: reference / limbeck | plan |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        plan = row["plan"]
        words = (
            f"{plan['strategy']}, {plan['precision']}, {plan['models']} at once, {plan['lanes']} lanes of {plan['threads']}, chunk {plan['chunk']}"
        )
        times = (
            (f"{row['reference_ms']:.1f} ms/step", f"{row['limbeck_ms']:.1f} ms/step", f"{row['job_ratio']:.1f}x")
            if "job_ratio" in row
            else (f"{row['images_per_second'] / row['ratio']:,.0f} images/s", f"{row['images_per_second']:,.0f} images/s", "–")
        )
        memory = f"{row['peak_mb']['reference']:.0f} / {row['peak_mb']['limbeck']:.0f}"
        spread = f"{min(row['ratios']):.1f}–{max(row['ratios']):.1f}"
        lines.append(
            f"| {row['case']} | {times[0]} | {times[1]} | **{row['ratio']:.1f}x** | {spread} | {times[2]} | {row['tflops']:.2f} | {memory} | {words} |"
        )
    lines.append("")
    for precision, limit in record["limits"].items():
        lines.append(
            f"- Measured limit in {precision}: matrix product {limit['matmul_tflops']:.2f} TFLOP/s; the ConvNet's three convolutions alone, forward and backward, "
            f"{limit['convolution_tflops']:.2f} TFLOP/s."
        )
    best = max((row for row in record["rows"] if "job_ratio" in row), key=lambda row: row["tflops"])
    share = best["tflops"] / record["limits"]["bfloat16"]["convolution_tflops"]
    lines.append(f"- Training reaches {best['tflops']:.2f} TFLOP/s at best ({best['case']}): {share:.0%} of the convolutions' own limit.")
    return "\n".join(lines)


def main() -> None:
    """Writes the page."""
    parts = [HEAD]
    for name in ("cpu", "gpu"):
        path = RECORDS / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {record['machine']}\n", training(record), ""]
    path = RECORDS / "equivalence.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        means = {side: 100 * sum(found[side]) / len(found[side]) for side in ("limbeck", "reference")}
        verdict = "equivalent" if found["equivalent"] else "not shown to be equivalent"
        parts.append(
            f"## The same students\n\n{len(found['limbeck'])} pairs of students with equal initialization and batches, {found['steps']} steps on 100 real "
            f"Fashion-MNIST images with augmentation "
            f"(`python -m benchmarks.equivalence`): limbeck {means['limbeck']:.2f} %, reference {means['reference']:.2f} %; "
            f"difference {100 * found['difference']:+.2f} points, "
            f"90 % interval [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]: {verdict} within {100 * found['margin']:g} points.\n"
        )
    path = RECORDS / "streaming.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"| {row['images']:,} | {row['labeling_images_per_second']:,.0f} | {row['training_images_per_second']:,.0f} | {row['peak_mb']} |"
            for row in found["rows"]
        ]
        head = ["| images | labeled per second | trained per second | peak memory, MB |", "|---|---|---|---|"]
        parts.append(
            "## From disk\n\nJPEG files of 256x256 at size 64, ConvNet-D4-W32 (`python -m benchmarks.streaming`).\n\n"
            + "\n".join([*head, *rows])
            + "\n"
        )
    target = ROOT / "docs" / "results" / "speed.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
