"""``limbeck labels``: what concerns the labels of a set alone."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from limbeck.study.label_options import TuneLabelsOptions

app = App(name="labels", help="Choose how labels are made.")


@app.command
def tune(
    source: Annotated[str, Parameter(help="as for distill: digits, fashion-mnist, a folder of class folders, ...")],
    /,
    *,
    options: Annotated[TuneLabelsOptions, Parameter(name="*")] = TuneLabelsOptions(),  # noqa: B008 (frozen)
    out: Annotated[Path | None, Parameter(help="where to write")] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON on stdout, and nothing else there")] = False,
) -> None:
    """Choose snapshot, temperature, kept entries, precision and images per class for a byte budget, on validation, and print the `distill` command."""
    from limbeck.cli.console import STDOUT, TerminalReporter, bytes_words, percent, print_table
    from limbeck.study.label_budget import RECORD, tune_labels

    folder = out or Path("runs") / f"labels-{Path(source).name}-{options.bytes or 'nothing'}-seed{options.seed}"
    record = tune_labels(source, options, folder, reporter=TerminalReporter())
    if json:
        print(json_module.dumps(record, indent=2, sort_keys=True, allow_nan=False))
        return
    rounds = max(len(row["validation_accuracy"]) for row in record["candidates"])
    print_table("the candidates that trained longest", [*_FACTORS, "bytes", "validation accuracy %, round by round", "students"], _finalists(record))
    print_table(
        "what mattered in the first round, with all candidates in it",
        ["factor", "value", "candidates", "best %", "mean %", "in the last round"],
        [
            [row["factor"], _word(row["value"]), row["candidates"], percent(row["best"]), percent(row["mean"]), row["finalists"]]
            for row in record["factors"]
        ],
    )
    chosen = record["chosen"]
    words = ", ".join(f"{name} {_word(chosen[name])}" for name in _FACTORS if chosen[name] is not None)
    STDOUT.print(f"chosen of {len(record['candidates'])} in {rounds} rounds: {words}", markup=False, soft_wrap=True)
    spent, budget = bytes_words(chosen["bytes"]), bytes_words(record["budget_bytes"])
    STDOUT.print(f"{spent} of {budget}{_UNSPENT if chosen['limited_by'] == 'images' else ''}", markup=False, soft_wrap=True)
    STDOUT.print(_sureness(record), markup=False, soft_wrap=True)
    STDOUT.print(f"record: {folder / RECORD}\n\n{record['command']}", markup=False, soft_wrap=True)


_FACTORS = ("labels", "expert step", "temperature", "entries", "precision", "images per class")


_UNSPENT = ": the smallest class has no more images, so the rest of the budget is not spent"


def _word(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _sureness(record: dict[str, Any]) -> str:
    """On what the choice rests: how many validation images, how far their sample can be off, and which finalists are within that of the winner."""
    images, margin, protocol = record["validation_images"], record["validation_margin_95"], record["protocol"]
    if margin is None:
        return f"nothing was judged: there was one candidate; protocol {protocol}"
    last = [row["validation_accuracy"][-1] for row in record["candidates"] if row["validation_accuracy"][-1] is not None]
    close = sum(value > max(last) - margin for value in last)
    near = f"; {close} of the {len(last)} finalists are within that of the best, so they are not told apart" if close > 1 else ""
    return f"judged on {images} validation images, whose sample makes an accuracy uncertain by {100 * margin:.1f} points (95 %){near}; protocol {protocol}"


def _finalists(record: dict[str, Any]) -> list[list[Any]]:
    """The candidates of the last round, best first, with the interval over students where there were several; all of them when there was no round."""
    from limbeck.cli.console import percent

    def score(row: dict[str, Any], place: int) -> str:
        value, bounds = row["validation_accuracy"][place], row["validation_interval_95"][place]
        return percent(value) + (f" [{', '.join(percent(min(max(bound, 0), 1)) for bound in bounds)}]" if bounds else "")

    rows = [row for row in record["candidates"] if not row["validation_accuracy"] or row["validation_accuracy"][-1] is not None]
    rows.sort(key=lambda row: -(row["validation_accuracy"] or [0])[-1])
    return [
        [
            *(_word(row[name]) for name in _FACTORS),
            row["bytes"],
            "  ".join(score(row, place) for place in range(len(row["validation_accuracy"]))),
            ", ".join(map(str, row["validation_students"])),
        ]
        for row in rows
    ]
