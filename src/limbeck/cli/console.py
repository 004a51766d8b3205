"""What the terminal shows: progress bars with time left on stderr, tables on stdout."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from limbeck.progress import Reporter, Tick

STDOUT = Console(highlight=False)
STDERR = Console(stderr=True, highlight=False)


class TerminalReporter(Reporter):
    """Draws one bar per task; when stderr is no terminal, one line per finished task instead."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Tick]:
        if not STDERR.is_terminal:
            yield lambda units: None
            STDERR.print(f"done: {description}", markup=False)
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=STDERR, transient=False) as progress:
            identifier = progress.add_task(description, total=total)
            self._progress = progress
            try:
                yield lambda units: progress.advance(identifier, units)
            finally:
                self._progress = None

    def note(self, message: str) -> None:
        (self._progress.console if self._progress else STDERR).print(f"note: {message}", style="yellow", markup=False, soft_wrap=True)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A plain table on stdout; columns of numbers are right-aligned."""
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(str(row[i])[:1].isdigit() or str(row[i])[:1] in "+-–" for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    if STDOUT.is_terminal:
        STDOUT.print(table)
    else:
        Console(file=sys.stdout, width=max(120, STDOUT.width), highlight=False).print(table)


def percent(fraction: float) -> str:
    """``77.4``: a fraction in percent, one decimal."""
    return f"{100 * fraction:.1f}"


def bytes_words(count: int) -> str:
    """``12.3 kB``: decimal units."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def print_evaluations(rows: list[dict[str, Any]], expert: dict[str, Any] | None) -> None:
    """The accuracy table of a record."""
    body = []
    for row in rows:
        interval, shape = row["interval_95"], (len(row["accuracy"]), len(row["accuracy"][0]), len(row["accuracy"][0][0]))
        spread = f"[{percent(interval['low'])}, {percent(interval['high'])}]" if interval["low"] is not None else "one student"
        runs = " x ".join(
            f"{count} {name}" for count, name in zip(shape, ("draws", "experts", "students"), strict=True) if count > 1 or name == "students"
        )
        sizes = (bytes_words(row["bytes"]["images"]), bytes_words(row["bytes"]["labels"]))
        accuracy = (percent(interval["mean"]), spread, interval["covers"], percent(row["worst_class_mean"]))
        body.append([row["role"], row["model"], *accuracy, runs, row["images"], *sizes])
    protocols = ", ".join(sorted({row["protocol"] for row in rows}))
    headings = ["set", "model", "test accuracy %", "95 % interval", "covers", "worst class %", "runs", "images", "image bytes", "label bytes"]
    print_table(f"last-epoch test accuracy, protocol {protocols}, {rows[0]['test_images']} test images", headings, body)
    if expert and expert.get("test_accuracy") is not None:
        line = f"expert (step {expert['chosen_step']}, {expert['chosen_by']}): {percent(expert['test_accuracy'])} % on test"
        if expert.get("last_test_accuracy") is not None:
            line += f"; trained to the end on all of train (step {expert['last_step']}): {percent(expert['last_test_accuracy'])} %"
        STDOUT.print(line, markup=False, soft_wrap=True)
