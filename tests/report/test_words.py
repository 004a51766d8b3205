import numpy as np
import pytest

from limbeck.report import words
from limbeck.types.evaluation import Interval, t_interval

NARROW = Interval(0.9, 0.8998, 0.9002, "students", 5)
SINGLE = t_interval(np.array([0.5]), "students")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (82_400, "82.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (47_040_000, "47.0 MB"),
        (9_031_680_000, "9.03 GB"),
    ],
)
def test_sizes_have_three_significant_digits(number: int, text: str) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (59.4, "59 s"), (120.2, "2 min 0 s"), (12_000.0, "3 h 20 min")])
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_intervals_are_percentages_with_a_half_width() -> None:
    assert words.percent_interval(Interval(0.774, 0.768, 0.780, "students", 5)) == "77.4 ± 0.6"
    assert words.percent_interval(NARROW) == "90.00 ± 0.02"  # not rounded to nothing
    assert words.percent_interval(SINGLE) == "50.0"
    assert words.percent_interval(Interval(float("nan"), float("nan"), float("nan"), "students", 5)) == words.DASH


def test_differences_carry_a_sign_and_zero_none() -> None:
    assert words.points(Interval(0.041, 0.036, 0.046, "students", 5)) == "+4.1 ± 0.5"
    assert words.points(Interval(-0.041, -0.046, -0.036, "students", 5)) == "\u22124.1 ± 0.5"
    assert words.points(Interval(-0.0001, -0.0101, 0.0099, "students", 5)) == "0.0 ± 1.0"


def test_what_an_interval_covers() -> None:
    assert words.covers(Interval(0.5, 0.4, 0.6, "image draws and experts and students", 12)) == "covers image draws, experts and students"
    assert words.covers(SINGLE) == "nothing repeated"


def test_repeats_and_counts() -> None:
    assert words.repeats(1, 1, 1) == "1 student"
    assert words.repeats(3, 1, 5) == "3 image draws × 1 expert × 5 students = 15"
    assert words.per_class([10, 10]) == "10 per class"
    assert words.per_class([3, 52]) == "3 to 52 per class"
    assert words.count(2, "class", "classes") == "2 classes"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.times_smaller(47_040_000, 82_400) == "571×"


def test_label_rules() -> None:
    assert words.label_rule({"kind": "hard"}, 10) == "hard labels"
    assert (
        words.label_rule({"kind": "soft", "temperature": 2.0, "top_k": None, "precision": "float16"}, 10)
        == "soft labels (temperature 2, all 10 classes kept, float16)"
    )
    rule = {"kind": "soft", "temperature": 1.0, "top_k": 5, "renormalize": False, "precision": "float32"}
    assert words.label_rule(rule, 200) == "soft labels (temperature 1, top 5 of 200 classes kept, not renormalized, float32)"
