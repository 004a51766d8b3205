"""Numbers and choices as words: the same phrase wherever a value is shown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limbeck.types.evaluation import Interval

MINUS, DASH = "\u2212", "\u2013"  # a true minus sign, and the dash that stands for "nothing here"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 student``, ``5 students``, ``10,000 test images``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    items = list(parts)
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def size(number: int) -> str:
    """Bytes with three significant digits in decimal units: ``824 bytes``, ``82.4 kB``, ``47.0 MB``."""
    if number < 1000:
        return count(number, "byte")
    value, units = float(number), iter(("kB", "MB", "GB", "TB"))
    unit = "bytes"
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"


def times_smaller(full: int, kept: int) -> str:
    """``571×``, ``8.3×``: how many times `kept` goes into `full`."""
    ratio = full / max(kept, 1)
    return f"{ratio:,.0f}×" if ratio >= 20 else f"{ratio:.1f}×"


def duration(seconds: float) -> str:
    """``0.4 s``, ``38 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(fraction: float, digits: int = 1) -> str:
    """``77.4``: a fraction as per cent, without the sign that its column or sentence carries; a dash for NaN."""
    if math.isnan(fraction):
        return DASH
    text = f"{100 * fraction:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent_interval(interval: Interval) -> str:
    """``77.4 ± 0.6``, or ``77.4`` alone when nothing was repeated. A narrow interval shows a second decimal, so that it is not rounded to nothing."""
    if math.isnan(interval.low):
        return percent(interval.mean)
    digits = _digits(interval)
    return f"{percent(interval.mean, digits)} ± {percent(interval.half_width, digits)}"


def covers(interval: Interval) -> str:
    """``covers image draws, experts and students``, or ``nothing repeated``."""
    return f"covers {listing(interval.covers.split(' and '))}" if interval.n > 1 else "nothing repeated"


def points(interval: Interval) -> str:
    """A difference of accuracies in percentage points, with its sign: ``+4.1 ± 0.5``."""
    digits = 1 if math.isnan(interval.low) else _digits(interval)
    text = percent(interval.mean, digits)
    signed = text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"
    return signed if math.isnan(interval.low) else f"{signed} ± {percent(interval.half_width, digits)}"


def _digits(interval: Interval) -> int:
    return 2 if 0 < 100 * interval.half_width < 0.095 else 1


def repeats(draws: int, experts: int, students: int) -> str:
    """``5 students`` or ``3 image draws × 1 expert × 5 students = 15``."""
    if draws == 1 and experts == 1:
        return count(students, "student")
    shown = " × ".join((count(draws, "image draw"), count(experts, "expert"), count(students, "student")))
    return f"{shown} = {draws * experts * students:,}"


def per_class(counts: Sequence[int]) -> str:
    """``10 per class`` or ``3 to 52 per class``."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low:,} per class" if low == high else f"{low:,} to {high:,} per class"


def label_rule(rule: Mapping[str, Any], classes: int) -> str:
    """``soft labels (temperature 1, all 10 classes kept, float32)``."""
    if rule.get("kind", "soft") == "hard":
        return "hard labels"
    top = rule.get("top_k")
    if top is None or top >= classes:
        kept = f"all {classes:,} classes kept"
    else:
        kept = f"top {top:,} of {classes:,} classes kept" + ("" if rule.get("renormalize", True) else ", not renormalized")
    return f"soft labels (temperature {rule.get('temperature', 1.0):g}, {kept}, {rule.get('precision', 'float32')})"
