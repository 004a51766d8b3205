"""The run in words: what was distilled, what it costs, how its students do, and against what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.evaluate.protocols import PROTOCOLS
from limbeck.methods.driver import stopped_words
from limbeck.report import words
from limbeck.report.tables import Gain, Row
from limbeck.types.evaluation import Interval


@dataclass(frozen=True)
class Tile:
    """One number that stands out: what it is, its value and unit, and what it must not travel without."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class Summary:
    """Tiles, then sentences."""

    tiles: tuple[Tile, ...]
    sentences: tuple[str, ...]


def summarize(record: Mapping[str, Any], rows: Sequence[Row], found: Sequence[Gain]) -> Summary:
    """The headline of a run; says so when the set was not evaluated."""
    main = next((row for row in rows if row.role == "distilled"), None)
    beside = [row for row in rows if main and row.role != "distilled" and row.repeats and (row.protocol, row.model) == (main.protocol, main.model)]
    own_gains = [gain for gain in found if main and (gain.over.protocol, gain.over.model) == (main.protocol, main.model)]
    sentences = [_what(record), *_stopped(record), _cost(record)]
    if main is None:
        sentences.append("This set has not been evaluated, so nothing is known about the students that it makes; “limbeck evaluate” measures them.")
    else:
        sentences += [_accuracy(main), *_baselines(main, beside, own_gains), *_others(main, rows)]
    sentences += [*_experts(rows), *_diverged(rows)]
    return Summary(tuple(_tiles(record, main, own_gains)), tuple(sentences))


def protocol_note(label: str) -> str:
    """What a protocol's label stands for; empty for one that this version does not know."""
    protocol = PROTOCOLS.get(label.partition("/")[0])
    return f"{protocol.note}. {protocol.source}" if protocol is not None and protocol.label == label else ""


def _tiles(record: Mapping[str, Any], main: Row | None, own_gains: Sequence[Gain]) -> list[Tile]:
    counts, total, full = record["counts"], record["bytes"]["total"], record.get("full_data_bytes")
    number, _, unit = words.size(total).rpartition(" ")
    tiles = []
    if main is not None:
        trained = f"{main.model}, protocol {main.protocol}, {main.repeats_text}; {_interval_words(main.accuracy)}"
        tiles.append(Tile("Test accuracy of its students", main.accuracy_text, "%", trained))
    hard = next((gain for gain in own_gains if gain.over.role == "random-hard"), None)
    if hard is not None:
        labels_alone = record["method"] == "random-real" and record["label_rule"].get("kind") == "soft"
        name = "Gain over hard labels" if labels_alone else "Gain over random real images"
        tiles.append(Tile(name, hard.text, "points", f"paired with “{hard.over.name}”; {_interval_words(hard.difference)}"))
    tiles.append(Tile("Images", f"{sum(counts):,}", "", f"{words.per_class(counts)}, {words.count(len(counts), 'class', 'classes')}"))
    against = f"{words.times_smaller(full, total)} smaller than the full data" if full else "images, labels and decoder"
    tiles.append(Tile("Size", number, unit, against))
    return tiles


def _what(record: Mapping[str, Any]) -> str:
    counts, source = record["counts"], record["source"]
    shape = "×".join(str(side) for side in source.get("shape", ()))
    return (
        f"{words.count(sum(counts), 'image')}{f' of {shape}' if shape else ''} ({words.per_class(counts)}, {words.count(len(counts), 'class', 'classes')}) "
        f"from {source.get('name', 'an unnamed source')}, made by {record['method']}, with {words.label_rule(record['label_rule'], len(counts))}."
    )


def _stopped(record: Mapping[str, Any]) -> list[str]:
    taken = record.get("optimization") or {}
    return [f"Distilling was {stopped_words(taken['steps'], taken['total'])}: the set is not finished."] if "total" in taken else []


def _cost(record: Mapping[str, Any]) -> str:
    parts, full = record["bytes"], record.get("full_data_bytes")
    shown = words.listing(f"{words.size(parts[key])} of {key}" for key in ("images", "labels", "decoder") if parts.get(key))
    text = f"The set takes {words.size(parts['total'])} ({shown})"
    return text + (f"; the full data take {words.size(full)}, {words.times_smaller(full, parts['total'])} as much." if full else ".")


def _accuracy(main: Row) -> str:
    on = f" on {words.count(main.test_images, 'test image')}" if main.test_images else ""
    protocol = PROTOCOLS.get(main.protocol.partition("/")[0])
    note = f": {protocol.note}" if protocol is not None and protocol.label == main.protocol else ""
    return (
        f"New {main.model} networks trained on this set alone{f' at its {main.rate}' if main.rate else ''} reach {main.accuracy_text} %{on} after their last epoch "
        f"({main.repeats_text}; {_interval_words(main.accuracy)}). Protocol {main.protocol}{note}."
    )


def _baselines(main: Row, beside: Sequence[Row], own_gains: Sequence[Gain]) -> list[str]:
    sentences: list[str] = []
    for row in beside:
        gain = next((gain for gain in own_gains if (gain.over.name, gain.over.role) == (row.name, row.role)), None)
        opening = "In the same way" if sentences else "Beside it, trained and measured in the same way"
        if row.rate != main.rate:
            opening = f"{'At' if sentences else 'Beside it, measured in the same way and trained at'} {row.rate or 'the protocol’s learning rate'}"
        start = f"{opening}, “{row.name}” reaches {row.accuracy_text} % ({row.repeats_text})"
        if gain is None:
            sentences.append(f"{start}; the difference is not paired, because seeds, draws, experts or students differ.")
        else:
            verdict = "" if gain.clear or gain.difference.n < 2 else ", which does not exclude zero"
            sentences.append(f"{start}: a difference of {gain.text} points{verdict} (paired; {_interval_words(gain.difference)}).")
    return sentences


def _others(main: Row, rows: Sequence[Row]) -> list[str]:
    others = [row for row in rows if row.role == "distilled" and row is not main]
    shown = words.listing(f"{row.model} under {row.protocol} {row.accuracy_text} % ({row.repeats_text})" for row in others)
    return [f"The same set also trains {shown}."] if others else []


def _experts(rows: Sequence[Row]) -> list[str]:
    networks = [row for row in rows if row.repeats is None]
    shown = words.listing(f"{row.name}, {row.accuracy_text} % ({row.repeats_text})" for row in networks)
    return [f"Networks trained on the full training split, for reference and not repeated, so without intervals: {shown}."] if networks else []


def _diverged(rows: Sequence[Row]) -> list[str]:
    lost = [row for row in rows if row.diverged]
    shown = words.listing(f"{row.diverged} of “{row.name}”" for row in lost)
    return [f"Students that diverged are counted with the class that they name: {shown}."] if lost else []


def _interval_words(interval: Interval) -> str:
    return f"95 % interval, {words.covers(interval)}" if interval.n > 1 else "nothing repeated, so no interval"
