from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.study.studies import SMALL

from limbeck.errors import OptionError
from limbeck.study.claims import CHECKS, Verdict, difference, ratio
from limbeck.study.pairing import check_pairs, paired
from limbeck.study.spec import Cell, Making, Study
from limbeck.study.view import Selector, View
from limbeck.types.evaluation import paired_difference, t_interval

Repeats = dict[str, Any]


def view(**arms: list[tuple[Repeats, list[float]]]) -> View:
    """Arms with the repeats (draw, expert) and the measured accuracies of each of their cells; ``expert-score`` in a repeat makes it a score of an expert."""
    cells, rows = [], {}
    for arm, entries in arms.items():
        for repeats, accuracy in entries:
            coordinates = {name: value for name, value in repeats.items() if name != "task"}
            cells.append(Cell(arm, coordinates, Making(task=repeats.get("task", "evaluate"))))
            rows[f"k{len(cells)}"] = {"measures": {"accuracy": accuracy}}
    return View(Study.parse(SMALL), "smoke", cells, list(rows), rows)


def decided(given: View, kind: str, **fields: Any) -> Verdict:
    return CHECKS[kind](kind=kind, **fields).decide(given, {})


def numbers(seed: int, *shape: int) -> np.ndarray:
    return 0.3 + 0.02 * np.random.default_rng(seed).standard_normal(shape)


def over(values: np.ndarray, *, expert: bool = True, draw: bool = True) -> list[tuple[Repeats, list[float]]]:
    """Cells of an arm [draws, experts, students] that is crossed over draws, or experts, or both."""
    return [
        ({**({"draw": d} if draw else {}), **({"expert": e} if expert else {})}, values[d, e].tolist())
        for d in range(values.shape[0])
        for e in range(values.shape[1])
    ]


def test_an_arm_without_experts_is_paired_by_draw() -> None:
    # draws differ by far more than the arms do, and so do the two experts
    shift = np.array([-0.2, 0.0, 0.25])[:, None, None] + np.array([-0.03, 0.03])[None, :, None]
    soft, hard = numbers(0, 3, 2, 1) + shift, numbers(1, 3, 1, 1) + shift.mean(1, keepdims=True) - 0.1
    found = paired(view(soft=over(soft), hard=over(hard, expert=False)), Selector(arm="soft"), Selector(arm="hard"))
    gap = difference(found.arrays[0], found.arrays[1])
    expected = t_interval((soft.mean(1) - hard.mean(1)).ravel(), "")
    assert (gap.mean, gap.low, gap.high) == (pytest.approx(expected.mean), pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.words == "3 draws x 2 experts x 1 student against 3 draws x 1 student, experts averaged within each draw"
    verdict = decided(view(soft=over(soft), hard=over(hard, expert=False)), "greater", left={"arm": "soft"}, right={"arm": "hard"})
    assert verdict.answer == "holds"
    assert verdict.interval is not None
    assert verdict.interval.covers == "image draws and students (experts averaged)"


def test_an_arm_on_one_draw_is_compared_on_that_draw() -> None:
    many, one = numbers(2, 3, 1, 4), numbers(3, 1, 1, 4)
    many[1:] += 5  # what other draws reach does not matter
    given = view(many=over(many, expert=False), one=over(one, expert=False, draw=False))
    found = paired(given, Selector(arm="one"), Selector(arm="many"))
    gap, expected = difference(found.arrays[0], found.arrays[1]), paired_difference(one, many[:1])
    assert (gap.mean, gap.low, gap.covers) == (expected.mean, expected.low, "students")
    assert found.words == "1 draw x 4 students against 3 draws x 4 students, on draw 0, which all have"


def test_students_of_one_draw_against_another_number_of_them_are_unpaired() -> None:
    given = view(left=over(np.array([[[0.30, 0.34, 0.38]]]), draw=False, expert=False), right=over(numbers(4, 3, 1, 1), expert=False))
    found = paired(given, Selector(arm="left"), Selector(arm="right"))
    gap = difference(found.arrays[0], found.arrays[1])
    assert gap.mean == pytest.approx(0.34 - found.arrays[1].item())
    # t at 97.5 % with 2 degrees of freedom, spread 0.04, over 3 students and 1
    assert gap.half_width == pytest.approx(4.302653 * 0.04 * np.sqrt(1 / 3 + 1))
    assert gap.covers == "students (unpaired, taken to spread equally)"
    assert found.words == "1 draw x 3 students against 3 draws x 1 student, on draw 0, which all have, students unpaired"


def test_students_are_averaged_where_draws_are_repeated() -> None:
    left, right = numbers(5, 3, 1, 2), numbers(6, 3, 1, 1)
    found = paired(view(left=over(left, expert=False), right=over(right, expert=False)), Selector(arm="left"), Selector(arm="right"))
    assert difference(found.arrays[0], found.arrays[1]).low == pytest.approx(t_interval((left.mean(2) - right[:, :, 0]).ravel(), "").low)


def test_on_a_single_draw_pairs_are_experts() -> None:
    soft, hard = numbers(7, 1, 4, 2), numbers(8, 3, 1, 2)
    given = view(soft=over(soft, draw=False), hard=over(hard, expert=False))
    found = paired(given, Selector(arm="soft"), Selector(arm="hard"))
    gap = difference(found.arrays[0], found.arrays[1])
    assert gap.covers == "experts and students"
    assert gap.low == pytest.approx(t_interval((soft[0].mean(1) - hard[0, 0].mean()), "").low)


def test_an_experts_own_score_meets_every_student() -> None:
    score = [({"task": "expert-score"}, [0.5])]
    given = view(soft=over(numbers(9, 1, 1, 4), expert=False, draw=False), teacher=score)
    found = paired(given, Selector(arm="soft"), Selector(arm="teacher"))
    assert found.arrays[0].shape == found.arrays[1].shape == (1, 1, 4)
    assert found.numbers == "1 draw x 4 students against 1 value"


def test_arms_that_share_no_draw_are_refused() -> None:
    given = view(a=over(numbers(0, 3, 1, 2), expert=False))
    sides = Selector(arm="a", draw=0), Selector(arm="a", draw=2)
    for look in (paired, check_pairs):
        with pytest.raises(OptionError, match=r"a \(draw 0\) and a \(draw 2\) share no draw, so they cannot be compared pair by pair; name one draw"):
            look(given, *sides)
    assert paired(replace(given), sides[0], Selector(arm="a")).arrays[1].shape == (1, 1, 2)


def test_a_share_of_a_gain_is_fiellers_of_the_paired_differences() -> None:
    draws = np.array([-0.2, 0.0, 0.2, 0.1])[:, None, None]
    hard, soft = 0.3 + draws + 0.01 * numbers(1, 4, 1, 1), 0.5 + draws + 0.01 * numbers(2, 4, 1, 1)
    part = 0.3 + draws + 0.04 + 0.01 * numbers(3, 4, 1, 1)
    given = view(hard=over(hard, expert=False), soft=over(soft, expert=False), part=over(part, expert=False))
    sides = {"of": {"arm": "part"}, "base": {"arm": "hard"}, "full": {"arm": "soft"}}
    found = decided(given, "share-of-gain", **sides, below=0.5)
    assert found.answer == "holds"
    assert found.interval is not None
    for bound in (found.interval.low, found.interval.high):
        gap = ((part - hard) - bound * (soft - hard)).ravel()
        assert abs(gap.mean()) / (gap.std(ddof=1) / 2) == pytest.approx(3.182446, abs=1e-4)
    assert decided(given, "share-of-gain", **sides, below=0.1).answer == "fails"
    # no gain, no share of it; nor of a loss
    for base, full in (("hard", "hard"), ("soft", "hard")):
        flat = decided(given, "share-of-gain", of={"arm": "part"}, base={"arm": base}, full={"arm": full}, below=0.9)
        assert flat.answer == "undecided"
        assert "(no bounds: what it is divided by is not clearly above 0)" in flat.words


def test_a_ratio_of_nothing_to_something_is_decided() -> None:
    found = ratio(np.zeros((1, 1, 4)), np.array([[[0.4, 0.5, 0.6, 0.5]]]))
    assert (found.mean, found.low, found.high) == (0, pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    unsure = ratio(np.array([[[0.4, 0.5, 0.6]]]), np.array([[[-0.4, 0.5, 0.6]]]))
    assert (unsure.low, unsure.high) == (-np.inf, np.inf)


def test_unequal_repeats_say_what_both_cover() -> None:
    assert difference(numbers(0, 1, 1, 3), numbers(1, 3, 1, 1)).covers == "students against image draws and students (unpaired)"
