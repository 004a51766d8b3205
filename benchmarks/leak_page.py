"""Writes ``docs/results/leak.md`` from the measurements in ``benchmarks/results/leak``: ``python -m benchmarks.leak_page``.

To add a run, copy its ``measurement.json`` there under a name of its own, such as ``logistic-cpu.json``. Where several files hold the same experiment, the page
uses the first by name for its claims, and lists all.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.report.words import DASH, duration
from limbeck.types.measurement import Measurement

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "leak"
PAGE = ROOT / "docs" / "results" / "leak.md"
PAPER = "Behrens and Zdeborová 2025 (arXiv 2506.14457)"
HEAD = f"""# Results of the leak experiments

Generated from the records in `benchmarks/results/leak` by `python -m benchmarks.leak_page`. What is expected comes from
{PAPER}, its public results, or theory, as said; see [What soft labels give away](../leak.md).
Intervals are 95 % over repeats. A claim whose experiment has no record here is *not measured*.
"""


@dataclass(frozen=True)
class Row:
    """One claim: what is expected, what was measured, and what to think of it."""

    claim: str
    expected: str
    measured: str = DASH
    verdict: str = "not measured"


Rows = list[Row]


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(load(RUNS)), encoding="utf-8")


def load(folder: Path) -> dict[str, Measurement]:
    """The measurements of a folder by file name."""
    return {path.stem: Measurement.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))}


def page(found: Mapping[str, Measurement]) -> str:
    """The whole page."""
    first: dict[str, Measurement] = {}
    for measurement in found.values():
        first.setdefault(measurement.analysis, measurement)
    parts = [HEAD]
    for title, analysis, claims in SECTIONS:
        rows = claims(first[analysis]) if analysis in first else claims(None)
        lines = ["| claim | expected | measured | verdict |", "|---|---|---|---|"]
        lines += [f"| {row.claim} | {row.expected} | {row.measured} | **{row.verdict}** |" for row in rows]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
        notes = list(first[analysis].notes) if analysis in first else []
        notes += [
            _elsewhere(other)
            for other in found.values()
            if other.analysis == analysis and other is not first[analysis] and "threshold_mean" in other.quantities
        ]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes) + "\n")
    return "\n".join([*parts, _runs(found)])


def _elsewhere(other: Measurement) -> str:
    """The thresholds of linear teachers of another size."""
    mean, last, onward, capacity = (float(other[name].values) for name in ("threshold_mean", "last_mismatch", "matches_from", "capacity"))
    rhos = ", ".join(f"{rho:g}" for rho in other.axes["rho"])
    return (
        f"with {other.settings['options']['features']} features, at ρ = {rhos}: interpolated threshold {_number(mean)}, last mismatch at ρα = {_number(last, 3)}, "
        f"all match from {_number(onward, 3)} on; teachers memorize up to α = {_number(capacity)} (published: 1.88 at 1600)"
    )


def _runs(found: Mapping[str, Measurement]) -> str:
    lines = ["## Runs", "", "| record | command | options | seed | processor time |", "|---|---|---|---|---|"]
    for name, measurement in found.items():
        options = ", ".join(f"{key} {_plain(value)}" for key, value in sorted(measurement.settings["options"].items()))
        seconds = measurement.settings.get("cpu_seconds")
        lines.append(
            f"| {name} | `limbeck leak {measurement.analysis}` | {options} | {measurement.settings['seed']} | {DASH if seconds is None else duration(seconds)} |"
        )
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _holds(condition: bool) -> str:
    return "holds" if condition else "does not hold"


def _number(value: float, digits: int = 2) -> str:
    return DASH if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(measurement: Measurement, name: str, place: tuple[int, ...]) -> str:
    quantity = measurement[name]
    text = _number(float(quantity.values[place]))
    if quantity.low is None or quantity.high is None or math.isnan(float(quantity.low[place])):
        return text
    return f"{text} [{_number(float(quantity.low[place]))}, {_number(float(quantity.high[place]))}]"


def _nearest(values: tuple[float, ...], wanted: float) -> int:
    return int(np.abs(np.array(values, dtype=float) - wanted).argmin())


def linear(measurement: Measurement | None) -> Rows:
    """Claims 1 to 3: identification, partial leaks, overloaded teachers."""
    m = measurement
    texts = [
        ("A student of at least d independent soft labels is its teacher", "agreement on fresh inputs 1 from ρα = 1 on, within 5 % (theory)"),
        (
            "The teacher memorizes up to a capacity below 2 d",
            "last load with 99 %: 1.73 (public results, d = 200); one half of data sets is separable at 2 (Cover 1965)",
        ),
        ("Perfect leak between 1/ρ and the capacity", "from 1.61 / 1.36 / 1.12 at ρ = 0.64 / 0.79 / 0.93 (public results, d = 200)"),
        ("No perfect leak where 1/ρ is above the capacity", "none at ρ ≤ 0.49 (public results)"),
        (
            "Below the threshold, held-out labels are known better than by chance",
            "0.57 / 0.64 / 0.86 at α = 1.2, ρ = 0.23 / 0.51 / 0.79 (public results, d = 1600); chance 0.5",
        ),
        ("Labels shuffled within classes leave nothing", "0.5"),
        ("An overloaded teacher is recovered as a function", "beyond α = 2 and ρα = 1: agreement 1, held-out accuracy the teacher's"),
    ]
    if m is None:
        return [Row(*text) for text in texts]
    loads, rhos = np.array(m.axes["load"]), np.array(m.axes["rho"])
    ratio, agreement, held_out = (m[name].values for name in ("identification", "agreement_fresh", "student_held_out"))
    teacher = m["teacher"].values
    known = ratio >= 1
    mean, last, onward = (float(m[name].values) for name in ("threshold_mean", "last_mismatch", "matches_from"))
    capacity, on_grid = float(m["capacity"].values), float(m["capacity_on_grid"].values)
    after = _nearest(tuple(loads), on_grid) + 1
    window = [float(m["window_low"].values[_nearest(m.axes["rho"], rho)]) for rho in (0.638, 0.785, 0.932)]
    none_at = held_out[:, rhos <= 0.49].max()
    place = _nearest(m.axes["load"], 1.2)
    partial = [(place, _nearest(m.axes["rho"], rho)) for rho in (0.234, 0.509, 0.785)]
    inside = (ratio < 0.9) & (ratio > 0.3) & (loads[:, None] > 1) & (loads[:, None] < 2)
    shuffled = m["student_held_out_shuffled"].values[(loads > 1) & (loads < 4)]
    over = known & (loads[:, None] > 2)
    gap = np.abs(held_out - teacher[:, None])[over]
    measured = [
        f"interpolated threshold {_number(mean)} on average over ρ; last mismatch at {_number(last, 3)}, all match from {_number(onward, 3)} on; least "
        f"agreement beyond it {_number(agreement[ratio > last].min(), 3)}",
        f"{_number(on_grid)} (interpolated {_number(capacity)}); at the next load, {_number(float(loads[min(after, len(loads) - 1)]))}, "
        f"a data set is separable with probability {_number(float(m['separable'].values[min(after, len(loads) - 1)]))}",
        "from " + " / ".join(_number(value) for value in window) + f", up to {_number(on_grid)}",
        f"best held-out accuracy {_number(float(none_at), 3)}",
        " / ".join(_with_interval(m, "student_held_out", cell) for cell in partial),
        f"{_number(float(np.nanmean(shuffled)), 3)} on average over {shuffled.size} cells with 1 < α < 4",
        f"least agreement {_number(float(agreement[over].min()), 3)}; held-out accuracy is off the teacher's training accuracy by "
        f"{_number(float(gap.mean()), 3)} on average, as parts of one sample are",
    ]
    verdicts = [
        _holds(abs(mean - 1) <= 0.05 and last <= 1.05 and onward <= 1.05),
        _holds(1.6 <= on_grid <= 2.05),
        _holds(all(abs(value - 1 / rho) < 0.15 for value, rho in zip(window, (0.638, 0.785, 0.932), strict=True))),
        _holds(float(none_at) < 0.99),
        _holds(float(held_out[inside].mean()) > 0.55),
        _holds(abs(float(np.nanmean(shuffled)) - 0.5) < 0.03),
        _holds(float(agreement[over].min()) > 0.99 and float(gap.mean()) < 0.05),
    ]
    return [Row(*text, value, verdict) for text, value, verdict in zip(texts, measured, verdicts, strict=True)]


def temperatures(measurement: Measurement | None) -> Rows:
    """Claim 4: temperature, and how much of it is optimization."""
    texts = [
        (
            "With the published optimizer, low temperatures hide the leak (n = 1.5 d, ρ = 0.8)",
            "0.53 / 0.55 / 0.60 / 0.90 / 1.0 at τ = 0.32 / 1 / 3.2 / 10 / 32 (an independent computation, d = 200)",
        ),
        (
            "A converged student that starts at zero finds it",
            "0.63 / 0.93 / 1 / 1 / 1 at the same temperatures (an independent computation)",
        ),
        ("Least squares on log-probabilities finds it at every temperature", "1"),
        (
            "The published diagram mixes information with optimization",
            "converged students are better where the published ones lack steps or precision",
        ),
        ("Where converged students have an answer, it is that of least squares", "exact minus converged 0, blank cells only at low temperatures"),
        ("Shuffled labels leave nothing", "0.5"),
    ]
    m = measurement
    if m is None or set(m.axes["protocol"]) != {"authors", "converged", "exact"}:
        return [Row(*text) for text in texts]
    load = _nearest(m.axes["load"], 1.5)
    taus = [_nearest(tuple(np.log10(m.axes["tau"])), math.log10(tau)) for tau in (0.32, 1, 3.2, 10, 32)]
    places = {protocol: m.axes["protocol"].index(protocol) for protocol in m.axes["protocol"]}
    held_out = m["held_out"].values

    def line(protocol: str) -> np.ndarray:
        return held_out[places[protocol], 0, load][taus]

    def words(protocol: str) -> str:
        cells = [(places[protocol], 0, load, tau) for tau in taus]
        used = " / ".join(f"{m.axes['tau'][tau]:.2g}" for tau in taus)
        return " / ".join(_with_interval(m, "held_out", cell) for cell in cells) + f" at τ = {used}, α = {m.axes['load'][load]:.2f}"

    authors, converged, exact = line("authors"), line("converged"), line("exact")
    answered = ~np.isnan(converged)
    if (converged[answered] <= 0.9).any():
        finds = "does not hold"
    elif answered.all():
        finds = "holds"
    else:
        finds = f"holds where it answers, {int(answered.sum())} of {len(answered)}" if answered.any() else "not decided"
    inside = np.array(m.axes["load"]) * m.settings["options"]["rho"] > 1
    cells = held_out[places["converged"], 0] - held_out[places["authors"], 0]
    low = np.array(m.axes["tau"]) <= 10
    below, above = _largest(cells[:, low]), _largest(cells[:, ~low])
    mean = _largest(m["optimizer_gap"].values)
    beyond = held_out[places["exact"], 0] - held_out[places["converged"], 0]
    off = _largest(np.abs(beyond))
    blank = np.isnan(cells[inside])
    shuffled = m["held_out"].values[:, 1]
    return [
        Row(*texts[0], words("authors"), _holds(bool(authors[0] < 0.7 < authors[-1]))),
        Row(*texts[1], words("converged") + f" ({DASH} has no answer: it counts for nothing)", finds),
        Row(*texts[2], words("exact"), _holds(bool(exact.min() > 0.99))),
        Row(
            *texts[3],
            f"largest gap {_number(below)} up to τ = 10, where steps of the published size cannot reach the teacher, and {_number(above)} beyond, where float32 "
            f"cannot tell the labels apart; mean over loads at most {_number(mean)}, as overloaded teachers have small logits",
            _holds(below > 0.05) if not math.isnan(below) else "not decided",
        ),
        Row(
            *texts[4],
            f"largest difference {_number(off, 3)}; converged students have no answer at {int(blank.sum())} of {blank.size} cells with ρn > d, all at τ ≤ "
            + (f"{np.array(m.axes['tau'])[blank.any(0)].max():.2g}" if blank.any() else DASH),
            _holds(off < 0.01) if not math.isnan(off) else "not decided",
        ),
        Row(*texts[5], f"{_number(float(np.nanmean(shuffled)), 3)} on average", _holds(bool(abs(np.nanmean(shuffled) - 0.5) < 0.03))),
    ]


def _largest(values: np.ndarray) -> float:
    """The largest known value; NaN where none is known."""
    return float(np.nanmax(values)) if (~np.isnan(values)).any() else float("nan")


def class_counts(measurement: Measurement | None) -> Rows:
    """How thresholds move with the number of classes."""
    m = measurement
    names = {
        "capacity_scaled": ("Capacity grows as K / log K", "n log K / (d K) near 0.92 from 10 classes on", 0.92, 0.15),
        "seen_per_weight": ("Identification does not depend on K", "ρn/d = 1 (theory); published marks correspond to 1.1", 1.0, 0.2),
        "shuffled_scaled": ("Capacity for shuffled labels grows as √K", "n √K / (d K) near 0.66", 0.66, 0.15),
    }
    rows = []
    for name, (claim, expected, value, slack) in names.items():
        if m is None:
            rows.append(Row(claim, expected))
            continue
        many = np.array(m.axes["classes"]) >= 10
        values = m[name].values[many]
        words = " / ".join(_number(v) for v in values) + " at K = " + " / ".join(str(k) for k in np.array(m.axes["classes"])[many])
        close = np.abs(values[~np.isnan(values)] - value) <= slack
        rows.append(Row(claim, expected, words, _holds(bool(close.all())) if len(close) else "not decided"))
    return rows


def networks(measurement: Measurement | None) -> Rows:
    """Claim 5: four phases."""
    texts = ("Four phases: recovery, memory of the soft labels only, neither, and a teacher that cannot memorize", "all four occur")
    if measurement is None:
        return [Row(*texts)]
    phase = measurement["phase"].values
    counts = [int((phase == number).sum()) for number in (3, 2, 1, 0)]
    words = f"{counts[0]} / {counts[1]} / {counts[2]} / {counts[3]} of {phase.size} cells"
    best = measurement["held_out"].values.max()
    verdict = "holds" if min(counts) else "partly" if sum(count > 0 for count in counts) > 1 else "does not hold"
    shuffled = measurement["held_out_shuffled"].values.mean()
    chance = float(measurement.settings["chance"])
    return [
        Row(*texts, words + f"; best held-out accuracy {_number(float(best))}", verdict),
        Row("Shuffled labels leave nothing", f"chance, {chance:.2g}", _number(float(shuffled), 3), _holds(abs(float(shuffled) - chance) < 0.05)),
    ]


def treated(measurement: Measurement | None) -> Rows:
    """Which part of a label carries the leak."""
    if measurement is None:
        return [
            Row("Cutting the tail of soft labels weakens the leak", "–"),
            Row("The published tail cut is another treatment", "differs from the true cut"),
        ]
    m = measurement
    chance = float(m.settings["chance"])
    rows = []
    for place, treatment in enumerate(m.axes["treatment"]):
        if treatment in ("within-class", "hard"):
            low = m["held_out"].low
            nothing = float(m["held_out"].values[place]) < chance + 0.05 if low is None else float(low[place]) <= chance + 0.02
            expected, verdict = f"chance, {chance:.2g}", _holds(nothing)
        else:
            expected, verdict = "no number published", "measured"
        rows.append(Row(f"`{treatment}`", expected, _with_interval(m, "held_out", (place,)), verdict))
    return rows


def arithmetic(measurement: Measurement | None) -> Rows:
    """Claim 6: memory and understanding."""
    texts = [
        ("A memorizing teacher's students recall pairs of its training set that they never saw", "held-out accuracy above that on unseen pairs"),
        ("A generalizing teacher's students generalize", "high accuracy on unseen pairs"),
        ("At low temperature they recall none", "held-out accuracy no higher than on unseen pairs (published at τ = 0.1)"),
    ]
    if measurement is None:
        return [Row(*text) for text in texts]
    m = measurement
    gap = m["held_out"].values[0] - m["unseen"].values[0]
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    where = f"ρ = {m.axes['rho'][place[0]]:g}, τ = {m.axes['tau'][place[1]]:g}"
    first, last = float(m["teacher_unseen"].values[0]), float(m["teacher_unseen"].values[-1])
    best = float(m["unseen"].values[-1].max())
    coldest = int(np.argmin(m.axes["tau"]))
    cold = (0, place[0], coldest)
    return [
        Row(
            *texts[0],
            f"{_with_interval(m, 'held_out', (0, *place))} against {_with_interval(m, 'unseen', (0, *place))} at {where}; its teacher knows {_number(first)} "
            "of unseen pairs",
            _holds(float(gap.max()) > 0.05),
        ),
        Row(
            *texts[1],
            f"up to {_number(best)}; its teacher {_number(last)}",
            _holds(best > 0.9) if last > 0.9 else "no generalizing teacher in this run",
        ),
        Row(
            *texts[2],
            f"{_number(float(m['held_out'].values[cold]))} against {_number(float(m['unseen'].values[cold]))} at ρ = {m.axes['rho'][place[0]]:g}, "
            f"τ = {m.axes['tau'][coldest]:g}; largest gap at this τ {_number(float(gap[:, coldest].max()))}",
            _holds(float(gap[:, coldest].max()) < 0.05),
        ),
    ]


def drawn(measurement: Measurement | None) -> Rows:
    """The picture."""
    text = ("In the plane, students name held-out random labels better than by chance", "0.42 (one published run, 12 held-out points); chance 0.33")
    if measurement is None:
        return [Row(*text)]
    m = measurement
    low = m["held_out"].low
    above = low is not None and float(low[0]) > float(m.settings["chance"])
    return [
        Row(
            *text,
            f"{_with_interval(m, 'held_out', (0,))}; shuffled {_with_interval(m, 'held_out', (1,))}; hard {_with_interval(m, 'held_out', (2,))}",
            "holds" if above else "not decided",
        )
    ]


def language(measurement: Measurement | None) -> Rows:
    """Sequences."""
    text = ("A language model's labels give away random labels", "GPT-2: 0.24 / 0.59 / 0.73 at ρ = 0.2 / 0.5 / 0.8, chance 0.001 (public results)")
    if measurement is None:
        return [Row(*text)]
    m = measurement
    chance = float(m.settings["chance"])
    words = " / ".join(_with_interval(m, "held_out", (i,)) for i in range(len(m.axes["rho"])))
    shuffled = float(m["held_out_shuffled"].values.mean())
    holds = float(m["held_out"].values.max()) > 5 * chance
    return [
        Row(
            *text,
            f"{words} at ρ = {' / '.join(f'{rho:g}' for rho in m.axes['rho'])}, chance {chance:g}; shuffled {_number(shuffled, 3)} (a smaller model and task)",
            _holds(holds),
        )
    ]


def images(measurement: Measurement | None) -> Rows:
    """Real images."""
    texts = [
        ("Random labels among real images leak", "above chance for experts that memorized them"),
        ("True labels leak while the expert has not generalized", "held-out above unseen images"),
    ]
    if measurement is None:
        return [Row(*text) for text in texts]
    m = measurement
    rows = []
    for (claim, expected), name, floor in ((texts[0], "random", float(m.settings["chance"])), (texts[1], "true_beyond_unseen", 0.0)):
        values, low = m[name].values, m[name].low
        place = np.unravel_index(int(np.nanargmax(values)), values.shape)
        where = f"epoch {m.axes['epoch'][place[0]]:g}, τ = {m.axes['tau'][place[1]]:g}"
        above = low is not None and float(low[place]) > floor
        rows.append(
            Row(claim, expected, f"most: {_with_interval(m, name, tuple(int(i) for i in place))} at {where}", "holds" if above else "not decided")
        )
    return rows


SECTIONS: tuple[tuple[str, str, Callable[[Measurement | None], Rows]], ...] = (
    ("Linear teachers", "logistic", linear),
    ("Temperature: authors' and converged students", "temperature", temperatures),
    ("Number of classes", "class-scaling", class_counts),
    ("A hidden layer", "mlp", networks),
    ("Treatments of labels", "treatments", treated),
    ("Modular arithmetic", "modular", arithmetic),
    ("The picture", "picture", drawn),
    ("Sequences", "sequences", language),
    ("Real images", "structured", images),
)


if __name__ == "__main__":
    main()
