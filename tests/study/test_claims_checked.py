"""What a claim gets wrong is said before anything runs, or, where only the numbers can tell, in that claim's verdict alone."""

from pathlib import Path

import numpy as np
import pytest
from tests.study.studies import SMALL

from limbeck.errors import OptionError
from limbeck.report.study import write_study_report
from limbeck.study.claims import CHECKS, MEASURES, decide
from limbeck.study.running import run_study
from limbeck.study.spec import Claim, Study
from limbeck.study.study_options import StudyOptions
from limbeck.study.view import View
from limbeck.types.measurement import Measurement, Quantity

FIRST = 'check = { kind = "greater", left = { arm = "hard", ipc = 4 }, right = { arm = "hard", ipc = 1 } }'
ANALYSES = """
[[analyses]]
name = "curves"
id = "elsewhere"
options = { title = "Students", of = { arm = "soft" }, x = "epoch", color = "ipc" }
scales = []
"""


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (
            'kind = "greater", left = { arm = "hard" }, right = { arm = "hard", ipc = 1 }',
            "hard selects 2 settings that differ in ipc; name a value of each, at claims[0].check.left (line 26 of study.toml) (scale 'smoke')",
        ),
        (
            'kind = "greater", left = { arm = "hard", ipc = 4 }, right = { arm = "soft", ipc = 4 }',
            "soft (ipc 4) selects 2 settings that differ in epoch; name a value of each, at claims[0].check.right (line 26 of study.toml)",
        ),
        (
            'kind = "greater", left = { arm = "hard", ipc = 4, measure = "acuracy" }, right = { arm = "hard", ipc = 1 }',
            "'hard' has no measure 'acuracy'; did you mean 'accuracy'?",
        ),
        (
            'kind = "threshold", of = { arm = "expert", epoch = 1, measure = "label_entropy" }, above = 1',
            "'expert' has no measure 'label_entropy'; did you mean 'entropy'?",
        ),
        (
            'kind = "monotone", of = { arm = "soft", ipc = [4] }, along = "ipc"',
            "a trend along 'ipc' needs two values of it, got 1; give the axis more, at claims[0].check (line 26 of study.toml)",
        ),
        ('kind = "monotone", of = { arm = "soft" }, along = "ipc"', "soft (ipc 1) selects 2 settings that differ in epoch; name a value of each"),
        (
            'kind = "argmax-grows-with", of = { arm = "soft", epoch = 1 }, argmax = "epoch", along = "ipc"',
            "an argmax needs two values of 'epoch', got 1; give the axis more, at claims[0].check (line 26 of study.toml)",
        ),
        (
            'kind = "correlation", x = { arm = "hard" }, y = { arm = "hard" }, over = "ipc", above = 0.5',
            "a rank correlation needs four values of 'ipc' that both sides have, got 2; give the axis more, at claims[0].check (line 26 of study.toml)",
        ),
        (
            'kind = "significant", analysis = "studnts", quantity = "p"',
            "unknown analysis 'studnts' at claims[0].check.analysis (line 26 of study.toml) (scale 'smoke'); did you mean 'students'?",
        ),
        (
            'kind = "measured", analysis = "elsewhere", quantity = "p", above = 1',
            "unknown analysis 'elsewhere' at claims[0].check.analysis (line 26 of study.toml) (scale 'smoke'); known: students",
        ),
        (
            'kind = "factor", left = { analysis = "students", quantity = "a" }, right = { analysis = "stu", quantity = "a" }, within = 2',
            "unknown analysis 'stu' at claims[0].check.right (line 26 of study.toml) (scale 'smoke'); did you mean 'students'?",
        ),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused_with_its_place(check: str, sentence: str) -> None:
    assert FIRST in SMALL
    content = SMALL.replace(FIRST, f"check = {{ {check} }}").replace("[scales.smoke.experts.main]", f"{ANALYSES}\n[scales.smoke.experts.main]")
    with pytest.raises(OptionError) as refused:
        Study.parse(content)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_one_claims_mistake_leaves_the_others_and_the_report(tmp_path: Path) -> None:
    sides = 'each = "epoch", left = { ipc = 4 }, right = { ipc = 1 }, compare = "difference"'
    wrong = f'check = {{ kind = "entries", analysis = "students", quantity = "acuracy", {sides}, above = 0 }}'
    run = run_study(Study.parse(SMALL.replace(FIRST, wrong)), StudyOptions(out=tmp_path / "out", store=str(tmp_path / "store"), threads=1))
    verdicts = run.findings().verdicts
    assert verdicts["more-is-better"].answer == "undecided"
    assert (
        verdicts["more-is-better"].words
        == "cannot be decided: the analysis 'students' has no quantity 'acuracy'; did you mean 'accuracy'? known: accuracy"
    )
    assert "asked: above 50 %" in verdicts["trained"].words
    assert "cannot be decided" in write_study_report(run).read_text()
    # the table of measures is what the tasks write
    for row in run.ledger.rows.values():
        if row["kind"] in MEASURES:
            assert set(row["measures"]) | {"step"} == set(MEASURES[row["kind"]]) | {"step"}


def empty() -> View:
    return View(Study.parse(SMALL), "smoke", [], [], {})


def test_rows_of_a_quantity_are_compared_entry_by_entry() -> None:
    values = np.array([[[0.4, 0.6, 0.8, 0.5], [0.3, 0.4, 0.6, 0.35], [0.0, 0.0, 0.0, 0.0]]])
    axes = {"ipc": (1,), "treatment": ("control", "no-images", "no-label"), "class": ("a", "b", "c", "d")}
    measured = {"classes": Measurement("classes", "Classes", {"accuracy": Quantity(values, tuple(axes), "fraction")}, axes)}

    def verdict(left: str, right: str, compare: str, **side: float) -> tuple[str, str]:
        fields = {"left": {"treatment": left, "ipc": 1}, "right": {"treatment": right, "ipc": 1}, "compare": compare, **side}
        found = CHECKS["entries"](kind="entries", analysis="classes", quantity="accuracy", each="class", **fields).decide(empty(), measured)
        return found.answer, found.words

    answer, words = verdict("no-images", "control", "ratio", above=0.5)
    assert answer == "holds"
    assert words.startswith("accuracy of treatment no-images, ipc 1 over that of treatment control, ipc 1: 0.7174 [")
    assert words.endswith("; asked: above 0.5; 4 values of class")
    assert verdict("no-images", "control", "ratio", above=0.8)[0] == "fails"
    assert verdict("no-label", "control", "ratio", below=0.1)[0] == "holds"
    answer, words = verdict("no-images", "no-label", "difference", above=0.0)
    assert answer == "holds"
    assert "41.25 points [" in words
    with pytest.raises(OptionError, match="axis 'treatment' of 'accuracy' has no value 'nothing'; it has control, no-images, no-label"):
        verdict("nothing", "control", "ratio", above=0.5)


def test_two_scalars_are_the_same_up_to_a_factor() -> None:
    def scalar(value: float, low: float, high: float) -> Measurement:
        return Measurement("law", "Law", {"saving": Quantity(np.array(value), (), "times", np.array(low), np.array(high), "entries")})

    measured = {"few": scalar(6, 5, 7.2), "many": scalar(5, 4.5, 5.5), "far": scalar(1.5, 1.2, 1.8), "vague": scalar(6, 1, 40)}

    def verdict(left: str, right: str) -> str:
        sides = {"left": {"analysis": left, "quantity": "saving"}, "right": {"analysis": right, "quantity": "saving"}}
        found = CHECKS["factor"](kind="factor", **sides, within=2.0).decide(empty(), measured)
        if left == "few" and right == "many":
            assert found.interval is not None
            assert found.interval.low == pytest.approx(1.2 * np.exp(-np.hypot(np.log(6 / 5), np.log(5.5 / 5))))
            assert found.interval.high == pytest.approx(1.2 * np.exp(np.hypot(np.log(7.2 / 6), np.log(5 / 4.5))))
        return found.answer

    assert [verdict("few", other) for other in ("many", "far", "vague")] == ["holds", "fails", "undecided"]


def test_a_measurement_in_words_has_unit_threshold_and_numbers() -> None:
    study = Study.parse(SMALL)
    cells = study.cells("smoke")
    rows = {str(number): {"measures": {"accuracy": [0.1 * number, 0.1 * number + 0.02]}} for number in range(len(cells))}
    claim = Claim(
        id="x",
        sentence="",
        expected="",
        check={"kind": "similar", "left": {"arm": "hard", "ipc": 4}, "right": {"arm": "hard", "ipc": 1}, "within": 0.2},
    )
    assert decide(claim, View(study, "smoke", cells, list(rows), rows), {}).words == (
        "hard (ipc 4) minus hard (ipc 1): 10 points [10, 10]; asked: within ± 20 points; 1 draw x 2 students"
    )
