"""The numbers of a run as plain rows, for the page and for the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import FileFormatError
from limbeck.report import words
from limbeck.types.evaluation import Evaluation, Interval, paired_difference, t_interval

FORMAT = 1
_NOTHING = 1.0  # seconds in which no expert is trained
_EXPERTS = {
    "labels": "expert that labels",
    "matched": "expert behind the random images",
    "images": "expert behind the images",
    "baseline": "expert behind the random images",
}
_NEEDED = ("source", "method", "label_rule", "counts", "bytes")


@dataclass(frozen=True)
class Row:
    """One accuracy on the test split with what a reader needs to judge it.

    `role` is "distilled", "random-soft", "random-hard" or another role of the record; "expert" and "full data" for the networks trained on real data,
    which have no students, bytes or worst class: `networks` of them label together. Accuracies are fractions. `single` holds every student's accuracy. `rate`
    is the learning rate in words where it is not the protocol's.
    """

    name: str
    role: str
    model: str
    protocol: str
    accuracy: Interval
    single: tuple[float, ...]
    repeats: tuple[int, int, int] | None
    worst: Interval | None
    images: int | None
    bytes: Mapping[str, int] | None
    diverged: int
    test_images: int | None
    networks: int = 1
    rate: str = ""

    @property
    def accuracy_text(self) -> str:
        """Per cent: ``77.4 ± 0.6``."""
        return words.percent_interval(self.accuracy)

    @property
    def protocol_text(self) -> str:
        """``dc/1``, or ``dc/1, learned rate 0.031``."""
        return f"{self.protocol}, {self.rate}" if self.rate else self.protocol

    @property
    def worst_text(self) -> str:
        """Per cent: the worst class's accuracy, a mean over students."""
        return words.DASH if self.worst is None else words.percent_interval(self.worst)

    @property
    def repeats_text(self) -> str:
        """What was trained: ``5 students``, ``3 image draws × 1 expert × 5 students = 15``, ``1 network``."""
        return words.count(self.networks, "network") if self.repeats is None else words.repeats(*self.repeats)

    @property
    def covers_text(self) -> str:
        """The variance that the interval covers."""
        return words.covers(self.accuracy)


@dataclass(frozen=True)
class Gain:
    """How much better the distilled set's students are than those of another set that share their seeds: a paired difference of fractions."""

    over: Row
    difference: Interval

    @property
    def text(self) -> str:
        """Percentage points: ``+4.1 ± 0.5``."""
        return words.points(self.difference)

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def verdict(self) -> str:
        """``excludes zero; covers students``."""
        known = f"{'excludes' if self.clear else 'does not exclude'} zero; " if self.difference.n > 1 else ""
        return known + words.covers(self.difference)


def check(record: Mapping[str, Any]) -> None:
    """Raises `FileFormatError` unless `record` is a result of this version's format."""
    version = record.get("format")
    if version != FORMAT:
        raise FileFormatError(
            f"a result of format {version!r} cannot be reported; this version of limbeck reads format {FORMAT}; run `limbeck distill` again"
        )
    missing = [key for key in _NEEDED if key not in record]
    if missing:
        raise FileFormatError(f"the result lacks {words.listing(map(repr, missing))}; use an intact result.json")


def accuracy_rows(record: Mapping[str, Any]) -> list[Row]:
    """Every accuracy of a run on the test split: the distilled set's first, then the others' in the record's order, then the expert's own.

    Raises `FileFormatError` for a record of another format or with unreadable evaluations.
    """
    check(record)
    rows = [_evaluation_row(record, *found) for found in _evaluations(record)]
    return sorted(rows, key=lambda row: row.role != "distilled") + _expert_rows(record)


def gains(record: Mapping[str, Any]) -> list[Gain]:
    """The distilled set against every other set that was evaluated alike: same protocol, model, seed, test images and repeats, so that students pair up."""
    evaluations = _evaluations(record)
    found = []
    for mine, entry in evaluations:
        for other, other_entry in evaluations:
            if _role(entry) == "distilled" and _role(other_entry) != "distilled" and _paired(mine, other):
                found.append(Gain(_evaluation_row(record, other, other_entry), paired_difference(mine.accuracy, other.accuracy)))
    return found


def _paired(first: Evaluation, second: Evaluation) -> bool:
    same = all(getattr(first, key) == getattr(second, key) for key in ("protocol", "model", "seed", "test_digest"))
    return same and first.accuracy.shape == second.accuracy.shape


def _evaluations(record: Mapping[str, Any]) -> list[tuple[Evaluation, Mapping[str, Any]]]:
    return [(Evaluation.from_dict(entry), entry) for entry in record.get("evaluations") or ()]


def _role(entry: Mapping[str, Any]) -> str:
    return str(entry.get("role", "other"))


def _rate(record: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The learning rate in words where it is not the one of the record's protocol."""
    given, used = ((made.get("recipe") or {}).get("lr") for made in (record.get("protocol") or {}, entry))
    if given is None or used is None or used == given:
        return ""
    # records of earlier versions do not say where a rate comes from
    return f"{entry.get('rate') or 'learning'} rate {used:.2g}"


def _evaluation_row(record: Mapping[str, Any], evaluation: Evaluation, entry: Mapping[str, Any]) -> Row:
    draws, experts, students = evaluation.accuracy.shape
    return Row(
        name=evaluation.name,
        role=_role(entry),
        model=evaluation.model,
        protocol=evaluation.protocol,
        accuracy=evaluation.interval,
        single=tuple(evaluation.accuracy.reshape(-1).tolist()),
        repeats=(draws, experts, students),
        worst=evaluation.worst,
        images=evaluation.images,
        bytes=evaluation.bytes,
        diverged=evaluation.diverged,
        test_images=evaluation.test_images,
        rate=_rate(record, entry),
    )


def seconds_text(record: Mapping[str, Any], part: str) -> str:
    """How long a part of a run took: ``12 min 5 s``; ``cached`` where most of it came from a cache that does not say."""
    seconds = float(record["seconds"].get(part) or 0.0)
    # records of earlier versions count this run's seconds alone, which are none when all experts were in the cache
    cached = record.get("cached", ["expert and choice"] if record.get("expert") and seconds < _NOTHING else [])
    return "cached" if part in cached else words.duration(seconds)


def expert_use(expert: Mapping[str, Any]) -> str:
    """What a record's experts are for (`limbeck.study.experts.expert_use`); records of earlier versions say it for those that are matched alone."""
    return str(expert.get("use") or ("matched" if str(expert.get("chosen_by")).startswith("matched") else "labels"))


def _expert_rows(record: Mapping[str, Any]) -> list[Row]:
    expert = record.get("expert")
    if not expert:
        return []
    chosen, last = expert.get("chosen_step"), expert.get("last_step")
    wanted = []
    if expert.get("test_accuracy") is not None:
        wanted.append((_EXPERTS[expert_use(expert)] + ("" if chosen is None else f", step {chosen:,}"), "expert", expert["test_accuracy"]))
    if expert.get("last_test_accuracy") is not None and last != chosen:
        wanted.append(("expert, last" + ("" if last is None else f" step {last:,}"), "full data", expert["last_test_accuracy"]))
    source = record["source"]
    return [
        Row(
            name=name,
            role=role,
            model=str(expert.get("model", "")),
            protocol="trained on the full training split",
            accuracy=t_interval(np.array([accuracy]), ""),
            single=(float(accuracy),),
            repeats=None,
            worst=None,
            images=source.get("train"),
            bytes=None,
            diverged=0,
            test_images=source.get("test"),
            networks=expert.get("count") or 1,
        )
        for name, role, accuracy in wanted
    ]
