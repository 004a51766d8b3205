import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import FileFormatError
from limbeck.types.evaluation import Evaluation, nested_interval, paired_difference, t_interval


def test_t_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=7)
    interval = t_interval(values, "students")
    low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert np.allclose([interval.low, interval.high, interval.mean], [low, high, values.mean()])
    assert interval.half_width == pytest.approx((high - low) / 2)
    assert (interval.n, interval.covers) == (7, "students")


def test_one_value_has_no_interval() -> None:
    interval = nested_interval(np.full((1, 1, 1), 0.5))
    assert (interval.mean, interval.covers, interval.n) == (0.5, "nothing repeated", 1)
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


@pytest.mark.parametrize(
    ("shape", "covers"),
    [
        ((1, 1, 5), "students"),
        ((3, 1, 1), "image draws and students"),
        ((3, 1, 5), "image draws and students"),
        ((1, 3, 1), "experts and students"),
        ((1, 3, 2), "experts and students"),
        ((2, 3, 1), "image draws and experts and students"),
        ((2, 3, 4), "image draws and experts and students"),
    ],
)
def test_an_interval_says_what_it_covers(shape: tuple[int, int, int], covers: str) -> None:
    interval = nested_interval(np.random.default_rng(0).random(shape))
    assert interval.covers == covers
    assert interval.low < interval.mean < interval.high
    assert interval.n == np.prod(shape)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_repeated_factor_is_the_t_interval_of_its_means(axis: int) -> None:
    rng, shape = np.random.default_rng(1), (6, 1, 1) if axis == 0 else (1, 6, 1)
    accuracy = rng.random(shape) + 0.1 * rng.random((*shape[:2], 3))
    low, high = stats.t.interval(0.95, 5, accuracy.mean(), stats.sem(accuracy.mean(axis=2).reshape(-1)))
    interval = nested_interval(accuracy)
    assert np.allclose([interval.low, interval.high], [low, high])


def test_crossed_factors_have_the_variance_of_their_mean_squares() -> None:
    """Against mean squares from least-squares fits: what each factor explains beyond the models without it."""
    rng = np.random.default_rng(2)
    shape = (6, 5, 3)
    accuracy = 2 * rng.normal(size=(6, 1, 1)) + 2 * rng.normal(size=(1, 5, 1)) + rng.normal(size=(6, 5, 1)) + rng.normal(size=shape)
    draw, expert, _ = (index.reshape(-1) for index in np.indices(shape))
    columns = {"none": np.ones((90, 1)), "draw": np.eye(6)[draw], "expert": np.eye(5)[expert], "cell": np.eye(30)[5 * draw + expert]}

    def residual(*names: str) -> float:
        design = np.hstack([columns[name] for name in names])
        return float(((accuracy.reshape(-1) - design @ np.linalg.lstsq(design, accuracy.reshape(-1), rcond=None)[0]) ** 2).sum())

    squares = np.array([residual("none") - residual("draw"), residual("none") - residual("expert"), residual("draw", "expert") - residual("cell")])
    freedom = np.array([5, 4, 20])
    means = squares / freedom
    variance = means[0] + means[1] - means[2]
    satterthwaite = variance**2 / (means**2 / freedom).sum()
    expected = stats.t.ppf(0.975, satterthwaite) * np.sqrt(variance / 90)
    assert nested_interval(accuracy).half_width == pytest.approx(expected, rel=1e-9)


# Standard deviations of draws, experts, their interaction, and students; shapes with the levels of each.
LAYOUTS = [
    ((1, 1, 5), (0, 0, 0, 1.0)),
    ((5, 1, 3), (1.0, 0, 0, 1.0)),
    ((1, 5, 3), (0, 1.0, 0, 0.5)),
    ((5, 5, 2), (1.0, 1.0, 0.5, 1.0)),
    ((8, 4, 2), (1.0, 0.3, 0.3, 1.0)),
]


@pytest.mark.parametrize(("shape", "spreads"), LAYOUTS)
def test_intervals_cover_the_truth_at_their_nominal_rate(shape: tuple[int, int, int], spreads: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(20)
    draws, experts, _ = shape
    d, e, de, s = spreads
    covered, replicates = 0, 1500
    for _ in range(replicates):
        accuracy = (
            d * rng.normal(size=(draws, 1, 1))
            + e * rng.normal(size=(1, experts, 1))
            + de * rng.normal(size=(draws, experts, 1))
            + s * rng.normal(size=shape)
        )
        interval = nested_interval(accuracy)
        covered += interval.low <= 0 <= interval.high
    error = np.sqrt(0.95 * 0.05 / replicates)
    # Satterthwaite's degrees of freedom are an approximation with crossed factors; it may be off by a point or two, on the safe side by more
    slack = 0.02 if draws > 1 and experts > 1 else 0
    assert 0.95 - 3 * error - slack <= covered / replicates <= 0.95 + 3 * error + slack


def test_intervals_move_and_scale_with_their_values() -> None:
    accuracy = np.random.default_rng(3).random((3, 4, 2))
    one, other = nested_interval(accuracy), nested_interval(2 * accuracy - 7)
    assert np.allclose([other.mean, other.low, other.high], [2 * v - 7 for v in (one.mean, one.low, one.high)])
    shuffled = nested_interval(accuracy[::-1, [2, 0, 3, 1]])
    assert np.allclose([shuffled.low, shuffled.high], [one.low, one.high])
    assert nested_interval(accuracy, level=0.99).half_width > one.half_width


def test_no_interval_is_narrower_than_that_of_the_students_within_cells() -> None:
    accuracy = np.array([[[0.40, 0.46]], [[0.42, 0.44]], [[0.41, 0.45]]])  # means of draws that agree by chance
    within = float(((accuracy - 0.43) ** 2).sum()) / 3
    assert nested_interval(accuracy).half_width == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(within / 6))


def test_students_alone_have_an_interval_of_the_level_asked() -> None:
    accuracy = np.random.default_rng(4).random((1, 1, 5))
    wanted = stats.t.ppf(0.995, 4) * accuracy.std(ddof=1) / np.sqrt(5)
    assert nested_interval(accuracy, level=0.99).half_width == pytest.approx(wanted)


def test_equal_values_give_an_interval_of_no_width() -> None:
    for shape in ((1, 1, 4), (3, 1, 2), (2, 2, 2)):
        interval = nested_interval(np.full(shape, 0.25))
        assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_a_difference_is_taken_pair_by_pair() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 10, (2, 3, 4))
    first, second = shared + 1, shared + rng.normal(0, 0.01, (2, 3, 4))
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(1, abs=0.02)
    assert difference.half_width < 0.1
    same = paired_difference(shared, shared)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def evaluation(**changes: Any) -> Evaluation:
    rng = np.random.default_rng(5)
    given: dict[str, Any] = {
        "name": "random-real",
        "protocol": "dc/1",
        "model": "softmax",
        "accuracy": rng.random((2, 1, 3)),
        "loss": rng.random((2, 1, 3)),
        "worst_class": rng.random((2, 1, 3)),
        "bytes": {"total": 10},
        "images": 4,
        "sets": ("a", "b"),
        "test_digest": "t",
        "test_images": 100,
        "plan": {"device": "cpu"},
        "recipe": {"epochs": 1},
        "seed": 3,
    }
    return Evaluation(**{**given, **changes})


def test_a_record_is_plain_json_and_gives_the_evaluation_back() -> None:
    made = evaluation()
    record = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    again = Evaluation.from_dict(record)
    assert again.to_dict() == made.to_dict()
    assert np.array_equal(again.accuracy, made.accuracy)
    assert (again.sets, again.seed) == (made.sets, made.seed)
    assert record["interval_95"]["mean"] == made.interval.mean == made.accuracy.mean()
    assert record["worst_class_mean"] == made.worst.mean


def test_records_without_repetition_or_with_divergence_are_json_too() -> None:
    one = evaluation(accuracy=np.full((1, 1, 1), 0.5), loss=np.full((1, 1, 1), np.inf), worst_class=np.zeros((1, 1, 1)), sets=("a",))
    record = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert (record["interval_95"]["low"], record["interval_95"]["covers"]) == (None, "nothing repeated")
    assert Evaluation.from_dict(record).loss.item() >= 1e30


@pytest.mark.parametrize("record", [{}, {"accuracy": "x"}, {**dict.fromkeys(Evaluation.__dataclass_fields__, 0), "accuracy": [[1], [1, 2]]}])
def test_what_is_no_record_is_one_sentence(record: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match=r"^not a limbeck evaluation record \(.*\); use an intact evaluation.json$"):
        Evaluation.from_dict(record)
