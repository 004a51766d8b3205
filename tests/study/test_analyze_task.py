"""Studies that ask sets what they have learned: the task measures as `limbeck analyze` does, and its quantities answer claims."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.errors import OptionError
from limbeck.study.analyses import STUDY_ANALYSES, options_of
from limbeck.study.analyze_options import AnalyzeOptions
from limbeck.study.analyze_task import measurements_of
from limbeck.study.analyzing import analyze_file
from limbeck.study.claims import decide
from limbeck.study.graph import Builder, DataKey
from limbeck.study.pricing import price
from limbeck.study.running import Run, run_study
from limbeck.study.spec import Study
from limbeck.study.study_options import StudyOptions
from limbeck.study.view import View

STUDY = """name = "learned"
title = "What sets have learned"
question = "Does it run?"
paper = "none"

[arms.hard]
task = "analyze"
over = ["ipc"]
ipc = "{ipc}"
labels = { kind = "hard" }
analyses = "{analyses}"

[[claims]]
id = "agrees"
sentence = "Students agree"
expected = "of course"
check = { kind = "measured", analysis = "agreement", quantity = "hard: ipc=2 early-stopped", above = 0 }

[[claims]]
id = "means-something"
sentence = "Influence means something"
expected = "who knows"
check = { kind = "significant", analysis = "meaning", quantity = "hard: ipc=1" }

[[analyses]]
name = "quantities"
id = "agreement"
options = { title = "Agreement", analysis = "agreement", quantity = "matched_agreement", along = "match" }

[[analyses]]
name = "quantities"
id = "meaning"
options = { title = "Meaning", analysis = "semantics", quantity = "any_p_value" }

[scales.smoke]
source = "digits"
data = { shape = [1, 8, 8], classes = 10, train = 1295, test = 359 }
model = "softmax"
protocol = "tiny"
students = 1
axes = { ipc = [1, 2] }
cost = "seconds"

[scales.smoke.values]
analyses = { agreement = AGREEMENT, semantics = SEMANTICS }
""".replace(
    "AGREEMENT", "{ seeds = 1, runs = 1, epochs = 1, snapshots = 3, subset_sizes = 1, subset_seeds = 1, resamples = 20, nearest = 1 }"
).replace("SEMANTICS", '{ model = "softmax", steps = 5, test_images = 60, noise_points = 1, shuffles = 20, least = 2 }')


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("learned")
    return run_study(Study.parse(STUDY), StudyOptions(out=folder / "out", store=str(folder / "store"), threads=1))


def _view(run: Run) -> View:
    return View(run.study, run.scale, run.graph.cells, run.graph.keys, run.ledger.rows)


def test_every_set_is_measured_and_claims_are_decided(finished: Run) -> None:
    findings = finished.findings()
    assert findings.verdicts["agrees"].answer == "holds"
    assert findings.verdicts["means-something"].answer in ("holds", "undecided")
    measurement, (plot,) = findings.analyses["agreement"]
    assert measurement.axes == {"set": ("hard: ipc=1", "hard: ipc=2"), "match": ("early-stopped", "subset-trained")}
    assert plot.kind == "dots"
    row = next(row for row in finished.ledger.rows.values() if row["kind"] == "analyze")
    assert 0 <= row["measures"]["agreement agreement_at_early_stop"] <= 1
    assert row["facts"]["refused"] == {}


def test_what_is_measured_so_far_is_shown(finished: Run) -> None:
    given = _view(finished)
    rows = {key: row for key, row in given.rows.items() if row["settings"].get("images") != 20 or row["kind"] != "analyze"}
    partly = replace(given, rows=rows)
    made = {"agreement": STUDY_ANALYSES["quantities"](partly, options_of(finished.study.file.analyses[0]), finished.artefacts)[0]}
    assert made["agreement"].axes["set"] == ("hard: ipc=1",)
    claim = finished.study.file.claims[0]
    assert decide(claim, partly, made).answer == "not measured"


def test_a_study_measures_what_the_command_measures(finished: Run, tmp_path: Path) -> None:
    artefacts = finished.artefacts
    row = next(row for row in finished.ledger.rows.values() if row["kind"] == "analyze" and row["settings"]["images"] == 20)
    made = artefacts.cache.root / finished.ledger.rows[row["inputs"]["set"][0]]["files"][0]
    settings = row["settings"]["analyses"]["agreement"]["options"]
    options = AnalyzeOptions(protocol="tiny", threads=1, option=tuple(f"agreement:{key}={value}" for key, value in settings.items()))
    found = analyze_file(made, ["agreement"], options, tmp_path, source="digits", model="softmax", cache=artefacts.cache)
    (outcome,) = found.outcomes
    assert outcome.measurement is not None
    ours = measurements_of(artefacts, row)["agreement"]
    for name, quantity in ours.quantities.items():
        np.testing.assert_array_equal(quantity.values, outcome.measurement[name].values)


def test_a_study_is_priced_by_what_its_analyses_take() -> None:
    study = Study.parse(STUDY)

    def seconds(text: str) -> float:
        given = Study.parse(text)
        graph = Builder(given, "smoke", DataKey.unseen("normalize"), device="cpu").graph()
        return price(graph, "smoke", given.scale("smoke"), set(graph.tasks), rate=1e6).seconds

    assert seconds(study.content.replace("steps = 5", "steps = 50")) > 2 * seconds(study.content)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("agreement = {", "agrement = {", r"unknown analysis 'agrement'; did you mean 'agreement'.* at arms.hard \(line 6"),
        ("shuffles = 20", "shuffle = 20", r"analysis semantics has no option 'shuffle'; did you mean 'shuffles'"),
        ('analyses = "{analyses}"', "", r'an arm with task = "analyze" needs analyses'),
    ],
)
def test_bad_analyses_are_one_sentence(old: str, new: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Builder(Study.parse(STUDY.replace(old, new)), "smoke", DataKey.unseen("normalize"), device="cpu").graph()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantity": "matched"}, "agreement measures no 'matched'; did you mean 'matched_"),
        ({"quantity": "matched_agreement"}, r"'matched_agreement' has the axis 'match' as well; say where = \{ match = ... \}"),
        ({"quantity": "students_agree", "along": "match"}, "'students_agree' has no axis 'match'; it has none"),
        ({"quantity": "matched_agreement", "where": {"match": "late"}}, "axis 'match' has no coordinate 'late'"),
    ],
)
def test_quantities_that_are_not_there_are_one_sentence(finished: Run, options: dict[str, object], message: str) -> None:
    from limbeck.study.set_analyses import QuantitiesOptions

    with pytest.raises(OptionError, match=message):
        STUDY_ANALYSES["quantities"](_view(finished), QuantitiesOptions(title="T", analysis="agreement", **options), finished.artefacts)
