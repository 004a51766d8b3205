"""How fast training and scoring are on this machine's processor: ``python -m benchmarks.cpu`` or ``make bench`` (under ten minutes).

Prints a table and writes ``benchmarks/results/speed/cpu.json``; ``--no-write`` leaves the file alone, and ``--compare`` shows the change against it.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line sets it; both sides run under it

import torch

from benchmarks.speed import cases, limits, machine, measure, measure_scoring, table_of

TARGET = Path(__file__).parent / "results" / "speed" / "cpu.json"


def run(rounds: int) -> dict[str, Any]:
    """All cases."""
    rows = []
    for case in cases((5,), lambda batch: max(4, min(30, 1600 // batch))):
        rows.append(measure(case, "cpu", rounds))
        print(table_of(rows[-1:]).splitlines()[-1], flush=True)
    for shape in ("28x28x1",):
        rows.append(measure_scoring(shape, "cpu", rounds, images=5000))
        rows.append(measure_scoring(shape, "cpu", rounds, images=500, states=20))
    found = {"bfloat16": limits("cpu", torch.bfloat16), "float32": limits("cpu", torch.float32)}
    return {"machine": machine("cpu"), "limits": found, "rows": rows}


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Each case's ratio against the committed one: a regression guard for people, since machines differ and are noisy."""
    known = {row["case"]: row for row in old["rows"]}
    lines = [f"committed: {old['machine']}", f"now:       {new['machine']}"]
    for row in new["rows"]:
        before = known.get(row["case"])
        change = "new" if before is None else f"{before['ratio']:.2f}x -> {row['ratio']:.2f}x ({100 * (row['ratio'] / before['ratio'] - 1):+.0f} %)"
        lines.append(f"{row['case']:38} {change}")
    return "\n".join(lines)


def finish(record: dict[str, Any], target: Path, arguments: argparse.Namespace) -> None:
    """Prints the table, compares, writes."""
    print(f"\n{record['machine']}\n{table_of(record['rows'])}\n")
    for precision, limit in record["limits"].items():
        print(
            f"measured limit, {precision}: matrix product {limit['matmul_tflops']:.2f} TFLOP/s, convolutions alone {limit['convolution_tflops']:.2f} TFLOP/s"
        )
    if arguments.compare:
        print(f"\n{compare(json.loads(target.read_text(encoding='utf-8')), record)}")
    elif not arguments.no_write:
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written: {target}")


def parse() -> argparse.Namespace:
    """The command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each case")
    parser.add_argument("--no-write", action="store_true", help="leave the stored results alone")
    parser.add_argument("--compare", action="store_true", help="show the change against the stored results instead of storing")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    finish(run(given.rounds), TARGET, given)
