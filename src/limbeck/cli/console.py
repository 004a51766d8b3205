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
    """A plain table on stdout."""
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
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


def print_evaluations(record: dict[str, Any]) -> None:
    """The accuracy table of a record."""
    from limbeck.report.tables import accuracy_rows

    rows = accuracy_rows(record)
    body = []
    for row in rows:
        size = f"{bytes_words(row.bytes['images'])} + {bytes_words(row.bytes['labels'])}" if row.bytes else "–"
        body.append([row.name, row.model, row.accuracy_text, row.worst_text, row.repeats_text, size])
    print_table("", ["trained on", "model", "accuracy %", "worst class %", "trained", "images + labels"], body)
    judged = [row for row in rows if row.bytes]
    protocols, covers = ", ".join(sorted({row.protocol_text for row in judged})), "; ".join(sorted({row.covers_text for row in judged}))
    words = f"last-epoch accuracy on {judged[0].test_images} test images, protocol {protocols}; 95 % intervals: {covers}"
    STDOUT.print(words, markup=False, soft_wrap=True)


def print_score(score: dict[str, Any]) -> None:
    """Both robust scores with every component, and what their scale means."""

    def points(name: str, value: float, meaning: str) -> list[str]:
        return [name, f"{100 * value:+.1f}", meaning]

    def final(name: str, part: dict[str, Any], key: str) -> list[str]:
        low, high = part[f"{key}_low"], part[f"{key}_high"]
        return [
            name,
            f"{part[key]:.3f}" + ("" if low is None else f"  [{low:.3f}, {high:.3f}]"),
            f"{score['natural_zero']:.3f} means no better and no worse",
        ]

    if (label := score.get("label_robust")) is not None:
        rows = [
            ["real, hard", percent(label["real_hard"]), f"all real images, hard labels: {label['real_hard_from']}"],
            ["set, hard", percent(label["set_hard"]), "this set's images, hard labels"],
            ["set, own", percent(label["set_own"]), "this set under its own labels"],
            ["random, own", percent(label["random_own"]), "random real images under labels of the same kind"],
            points("HLR", label["hlr"], "points: real, hard minus set, hard (smaller is better)"),
            points("IOR", label["ior"], "points: set, own minus random, own"),
            ["alpha", f"{label['alpha']:+.3f}", f"as a fraction: {score['weight']:g} IOR - {1 - score['weight']:g} HLR"],
            final("LRS", label, "lrs"),
        ]
        print_table("label-robust score", ["component", "value (accuracies in %)", "what it is"], rows)
    if (augmented := score.get("augmentation_robust")) is not None:
        rows = [
            ["set, augmented", percent(augmented["set_augmented"]), f"this set, {augmented['augmentation']}"],
            ["random, augmented", percent(augmented["random_augmented"]), "random real images under labels of the same kind"],
            ["set, plain", percent(augmented["set_plain"]), "this set without augmentation"],
            ["random, plain", percent(augmented["random_plain"]), "random real images without augmentation"],
            ["beta", f"{augmented['beta']:+.3f}", f"as a fraction: {score['weight']:g} augmented gap + {1 - score['weight']:g} plain gap"],
            final("ARS", augmented, "ars"),
        ]
        print_table("augmentation-robust score", ["component", "value (accuracies in %)", "what it is"], rows)
    words = (
        f"last-epoch accuracy on test, protocol {score['protocol']}, {score['model']}, {score['students']} students an arm, every arm's learning rate chosen on "
        "validation; 95 % intervals over students and random draws"
    )
    STDOUT.print(words, markup=False, soft_wrap=True)
