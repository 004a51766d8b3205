import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.study.studies import SMALL

from limbeck.errors import OptionError
from limbeck.study.claims import CHECKS, Verdict, ratio, spearman
from limbeck.study.spec import Cell, Making, Study
from limbeck.study.view import NotMeasured, Selector, View
from limbeck.types.evaluation import paired_difference
from limbeck.types.measurement import Measurement, Quantity


def view(measure: Callable[..., list[float]], *, draws: int = 3, **axes: list[Any]) -> View:
    """A view of one arm ``a`` whose students' accuracies are ``measure(draw=..., **coordinates)``."""
    cells, rows = [], {}
    grid: list[dict[str, Any]] = [{}]
    for name, values in axes.items():
        grid = [{**place, name: value} for place in grid for value in values]
    for place in grid:
        for draw in range(draws):
            cells.append(Cell("a", {**place, "draw": draw}, Making()))
            rows[f"k{len(cells)}"] = {"measures": {"accuracy": measure(draw=draw, **place)}}
    return View(Study.parse(SMALL), "smoke", cells, list(rows), rows)


def check(kind: str, given: View, **fields: Any) -> Verdict:
    return CHECKS[kind](kind=kind, **fields).decide(given, {})


def noisy(value: float, draw: int, scale: float = 0.01) -> list[float]:
    return [value + scale * (draw - 1), value + scale * (draw - 1) + scale / 4]


def test_a_difference_is_paired_and_covers_its_threshold_or_not() -> None:
    # draws move both sides by far more than the sides differ
    given = view(lambda draw, ipc: noisy(0.5 + 0.02 * ipc, draw, 0.2), ipc=[0, 1])
    left, right = {"arm": "a", "ipc": 1}, {"arm": "a", "ipc": 0}
    found = check("greater", given, left=left, right=right)
    expected = paired_difference(given.values(Selector(**left)), given.values(Selector(**right)))
    assert found.answer == "holds"
    assert found.interval is not None
    assert (found.interval.mean, found.interval.low, found.interval.covers) == (expected.mean, expected.low, "image draws and students")
    assert check("greater", given, left=left, right=right, by=0.03).answer == "fails"
    assert check("greater", given, left=right, right=left).answer == "fails"
    assert check("similar", given, left=left, right=right, within=0.03).answer == "holds"
    assert check("similar", given, left=left, right=right, within=0.01).answer == "fails"
    wide = view(lambda draw, ipc: noisy(0.5 + 0.02 * ipc, draw if ipc else 2 - draw, 0.2), ipc=[0, 1])
    assert check("greater", wide, left=left, right=right).answer == "undecided"
    assert check("similar", wide, left=left, right=right, within=0.03).answer == "undecided"


def test_without_repeats_nothing_is_decided() -> None:
    given = view(lambda draw, ipc: [0.5 + ipc], draws=1, ipc=[0, 1])
    found = check("threshold", given, of={"arm": "a", "ipc": 1}, above=0.1)
    assert (found.answer, found.to_dict()["interval_95"]["low"]) == ("undecided", None)
    assert "nothing repeated" in found.words


def test_thresholds_have_a_side() -> None:
    given = view(lambda draw, ipc: noisy(0.5, draw), ipc=[1])
    assert check("threshold", given, of={"arm": "a"}, above=0.3).answer == "holds"
    assert check("threshold", given, of={"arm": "a"}, below=0.3).answer == "fails"
    assert check("threshold", given, of={"arm": "a"}, below=0.9).answer == "holds"
    with pytest.raises(ValueError, match="exactly one of above and below"):
        check("threshold", given, of={"arm": "a"})


def test_a_ratio_has_fiellers_interval() -> None:
    # students alone: Fieller's bounds solve (mean(x) - r mean(y))^2 = t^2 var(x - r y) / n
    x, y = np.array([[[0.30, 0.33, 0.36, 0.31]]]), np.array([[[0.60, 0.61, 0.66, 0.64]]])
    found = ratio(x, y)
    for bound in (found.low, found.high):
        gap = (x - bound * y).reshape(-1)
        t = abs(gap.mean()) / (gap.std(ddof=1) / 2)
        assert t == pytest.approx(3.182446, abs=1e-4)  # Student's t at 97.5 % with 3 degrees of freedom
    assert found.mean == pytest.approx(x.mean() / y.mean())
    assert found.low < found.mean < found.high


def test_a_trend_holds_fails_or_stays_open() -> None:
    rising = view(lambda draw, ipc: noisy(0.1 * ipc, draw), ipc=[1, 2, 4])
    assert check("monotone", rising, of={"arm": "a"}, along="ipc").answer == "holds"
    assert check("monotone", rising, of={"arm": "a"}, along="ipc", direction="decreases").answer == "fails"
    bent = view(lambda draw, ipc: noisy({1: 0.1, 2: 0.5, 4: 0.4}[ipc], draw), ipc=[4, 1, 2])
    found = check("monotone", bent, of={"arm": "a"}, along="ipc")
    assert (found.answer, found.words.endswith("the other way from 2 to 4")) == ("fails", True)
    assert check("monotone", bent, of={"arm": "a"}, along="ipc", slack=0.2).answer == "holds"


def test_an_argmax_grows_shrinks_or_is_open() -> None:
    def peak(at: dict[int, int], scale: float) -> View:
        return view(
            lambda draw, ipc, epoch: noisy(-abs(math.log2(epoch) - math.log2(at[ipc])), draw * (1 if epoch > 2 else -1), scale),
            ipc=[1, 10],
            epoch=[1, 2, 4, 8],
        )

    grows = check("argmax-grows-with", peak({1: 1, 10: 8}, 0.01), of={"arm": "a"}, argmax="epoch", along="ipc")
    assert grows.answer == "holds"
    assert grows.details == ("best epoch at ipc 1: 1", "best epoch at ipc 10: 8")
    assert grows.interval is not None
    assert (grows.interval.mean, grows.interval.low, grows.interval.high) == (3, 3, 3)
    assert check("argmax-grows-with", peak({1: 8, 10: 1}, 0.01), of={"arm": "a"}, argmax="epoch", along="ipc").answer == "fails"
    assert check("argmax-grows-with", peak({1: 8, 10: 1}, 0.01), of={"arm": "a"}, argmax="epoch", along="ipc", direction="shrinks").answer == "holds"
    assert check("argmax-grows-with", peak({1: 4, 10: 4}, 0.01), of={"arm": "a"}, argmax="epoch", along="ipc").answer == "fails"
    assert check("argmax-grows-with", peak({1: 2, 10: 4}, 2.0), of={"arm": "a"}, argmax="epoch", along="ipc").answer == "undecided"


def test_few_repeats_do_not_make_an_argmax_grow() -> None:
    # one of five draws sees no growth: percentiles of 2.5 % leave it out, those that five repeats need do not
    mixed = view(lambda draw, ipc, epoch: [float(epoch * (1 if ipc == 10 or draw < 1 else -1.5))], draws=5, ipc=[1, 10], epoch=[1, 2])
    found = check("argmax-grows-with", mixed, of={"arm": "a"}, argmax="epoch", along="ipc")
    assert found.interval is not None
    assert (found.interval.mean, found.interval.low, found.answer) == (1, 0, "undecided")
    two = view(lambda draw, ipc, epoch: [float(epoch * ipc)], draws=2, ipc=[1, 10], epoch=[1, 2])
    found = check("argmax-grows-with", two, of={"arm": "a"}, argmax="epoch", along="ipc")
    assert (found.answer, "fewer than three repeats" in found.words) == ("undecided", True)


def test_students_that_diverged_are_counted_in_words() -> None:
    given = view(lambda draw, ipc: noisy(0.5, draw), ipc=[1])
    next(iter(given.rows.values()))["measures"]["loss"] = [None, 0.3]
    assert check("threshold", given, of={"arm": "a"}, above=0.3).words.endswith("3 draws x 2 students, 1 diverged")


def test_rank_correlation_has_bonett_and_wrights_interval() -> None:
    found = spearman([float(place) for place in range(10)], [0.0, 2.0, 1.0, 4.0, 3.0, 5.0, 7.0, 6.0, 9.0, 8.0])
    r = 1 - 6 * 8 / (10 * 99)
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 7)
    assert found.mean == pytest.approx(r)
    assert (found.low, found.high) == (pytest.approx(math.tanh(math.atanh(r) - half)), pytest.approx(math.tanh(math.atanh(r) + half)))
    assert math.isnan(spearman([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).low)
    # a perfect order of four has one chance in 24, so it does not exclude 0; of six one in 720
    four, six = (spearman([float(place) for place in range(count)], [float(place) for place in range(count)]) for count in (4, 6))
    assert (four.mean, four.high, six.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert (four.low < 0, 0.5 < six.low < 0.7) == (True, True)
    given = view(lambda draw, ipc: noisy(0.1 * ipc, draw), ipc=list(range(1, 12)))
    both = {"x": {"arm": "a"}, "y": {"arm": "a"}}
    assert check("correlation", given, **both, over="ipc", above=0.5).answer == "holds"


def test_a_claim_on_an_analysis_takes_its_scalar() -> None:
    measured = {"fit": Measurement("fit", "Fit", {"exponent": Quantity(np.array(0.08), low=np.array(0.06), high=np.array(0.1), covers="students")})}
    given = view(lambda draw, ipc: noisy(0.5, draw), ipc=[1])
    claim = CHECKS["measured"](kind="measured", analysis="fit", quantity="exponent", above=0.05)
    assert claim.decide(given, measured).answer == "holds"
    with pytest.raises(OptionError, match="the analysis 'fit' has no scalar 'exponnt'; did you mean 'exponent'?"):
        CHECKS["measured"](kind="measured", analysis="fit", quantity="exponnt", above=0.05).decide(given, measured)
    with pytest.raises(NotMeasured):
        claim.decide(given, {})


def test_a_selector_must_leave_one_setting_and_name_a_measure() -> None:
    given = view(lambda draw, ipc, epoch: noisy(0.5, draw), ipc=[1, 2], epoch=[3])
    assert given.values(Selector(arm="a", ipc=1)).shape == (3, 1, 2)
    with pytest.raises(OptionError, match=r"a selects 2 settings that differ in ipc; name a value of each"):
        given.values(Selector(arm="a"))
    with pytest.raises(OptionError, match=r"'a' has no measure 'acuracy'; did you mean 'accuracy'?"):
        given.values(Selector(arm="a", ipc=1, measure="acuracy"))


def test_one_measurement_is_not_counted_twice() -> None:
    given = view(lambda draw, ipc: noisy(0.5, draw), ipc=[1, 2])
    keys = list(given.tasks)
    keys[1] = keys[0]
    with pytest.raises(OptionError) as refused:
        replace(given, tasks=keys).values(Selector(arm="a", ipc=1))
    assert str(refused.value) == (
        "a (ipc 1) counts one measurement twice, as a: ipc=1, draw=0 and as a: ipc=1, draw=1; "
        "leave 'draw' out of the arm's `over`, which does not change what is measured"
    )
    assert replace(given, tasks=keys).values(Selector(arm="a", ipc=2)).shape == (3, 1, 2)
