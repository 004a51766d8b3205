"""The studies that come with limbeck: every file says what it asks, can be expanded and priced at every scale, and the cheapest ones run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.cache import Cache
from limbeck.study.analyses import STUDY_ANALYSES, check_analyses, options_of
from limbeck.study.artefacts import Artefacts
from limbeck.study.claims import decide
from limbeck.study.graph import Builder, DataKey, Graph
from limbeck.study.pricing import price
from limbeck.study.running import run_study
from limbeck.study.spec import SCALES, Study
from limbeck.study.study_options import StudyOptions
from limbeck.study.view import View

ROOT = Path(__file__).parents[2] / "studies"
FILES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.toml"))
OF_SETS = (
    "removed-class",
    "label-distance",
    "class-structure",
    "label-profile",
    "quantities",
    "break-even",
)  # they look into the sets and scores themselves
LABEL_WORTH = (
    *("figure-1", "figure-2", "figure-3", "figure-4", "figure-5", "figure-6", "figure-7", "figure-8", "figure-9", "figure-10"),
    *("table-1", "table-2-tiny-imagenet", "table-2-cifar-100", "table-2-cifar-10", "table-3", "table-4", "table-5", "table-6", "table-7"),
    *("structure", "slow-experts", "images-and-labels"),
)
OTHERS = ("uses/architecture-search", "uses/replay", "label-budget", "what-is-learned/methods", "what-is-learned/architectures")


def test_the_label_paper_is_covered() -> None:
    assert {f"label-worth/{name}" for name in LABEL_WORTH} <= set(FILES)
    assert set(OTHERS) <= set(FILES)


@pytest.mark.parametrize("name", [f"label-worth/{name}" for name in LABEL_WORTH] + list(OTHERS))
def test_a_study_says_what_it_asks_and_can_be_priced_at_every_scale(name: str) -> None:
    study = Study.load(ROOT / f"{name}.toml")
    assert study.file.name == name
    assert set(study.file.scales) == set(SCALES)
    assert study.content.startswith("# ")
    assert study.file.question.endswith("?")
    assert study.file.claims
    assert study.file.analyses
    check_analyses(study)
    for scale in SCALES:
        settings = study.scale(scale)
        graph = Builder(study, scale, DataKey.unseen(settings.pixels), device="cpu").graph()
        estimate = price(graph, scale, settings, set(graph.tasks))
        assert len(graph.cells) == len(study.cells(scale)) > 0
        if len(graph.cells) < 120:  # the claims of larger grids were checked by name when the file was read
            _check_answers(study, scale, graph)
        assert estimate.seconds > 0
        if scale == "smoke":
            assert estimate.seconds < 20
        if scale == "cpu" and name != "what-is-learned/methods":  # that one is six analyses of six sets
            assert estimate.seconds < 45 * 60


def _check_answers(study: Study, scale: str, graph: Graph) -> None:
    """Every claim and figure finds its cells: with planted numbers in all of them, each gives an answer."""
    generator, students = np.random.default_rng(0), study.scale(scale).students
    rows: dict[str, dict[str, Any]] = {}
    for cell, key in zip(graph.cells, graph.keys, strict=True):
        count = 1 if cell.making.task == "expert-score" else cell.making.students or students
        # grows with the budget and the epoch, so that a law can be fitted
        reached = 0.1 * np.log(2 + float(cell.coordinates.get("ipc", 1))) + 0.01 * float(
            cell.coordinates.get("early", cell.coordinates.get("late", 1))
        )
        accuracy = (reached + 0.01 * generator.random(count)).tolist()
        numbers: dict[str, Any] = dict.fromkeys(("label_entropy", "images", "bytes", "top_is_owner", "entropy", "epoch", "validation_accuracy"), 1.0)
        groups = cell.making.replay.groups if cell.making.replay else 0
        numbers |= {f"accuracy {each} {number + 1}": accuracy for number in range(groups) for each in ("after", "on group")}
        numbers |= {"forgetting": accuracy} if groups else {}
        rows[key] = {"kind": "evaluate", "key": key, "measures": {**numbers, "accuracy": accuracy, "loss": accuracy, "worst_class": accuracy}}
    view = View(study, scale, graph.cells, graph.keys, rows)
    measured = {}
    for entry in study.file.analyses:
        if (entry.scales is None or scale in entry.scales) and entry.name not in OF_SETS:
            measured[entry.id] = STUDY_ANALYSES[entry.name](view, options_of(entry), Artefacts(Cache(Path("unused"))))[0]
            assert all(quantity.values.size for quantity in measured[entry.id].quantities.values())
    kinds = {entry.id: entry.name for entry in study.file.analyses}
    for claim in study.file.claims:
        if (claim.scales is None or scale in claim.scales) and kinds.get(claim.check.get("analysis", "")) not in OF_SETS:
            assert decide(claim, view, measured).answer != "not measured", claim.id
            if claim.check["kind"] == "measured":  # a quantity without an interval leaves its claim undecided whatever is measured
                found = measured[claim.check["analysis"]][claim.check["quantity"]]
                assert found.low is not None, claim.id
                assert np.isfinite(found.low), claim.id


@pytest.mark.parametrize("name", ["label-worth/figure-3", "label-worth/table-6"])
def test_the_cheapest_studies_run_to_their_verdicts(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    study = Study.load(ROOT / f"{name}.toml")
    run = run_study(study, StudyOptions(out=tmp_path / "out", store=str(tmp_path / "store"), threads=1))
    assert all(done == total for done, total in run.counts().values())
    findings = run.findings()
    expected = {claim.id for claim in study.file.claims if claim.scales is None or "smoke" in claim.scales}
    assert set(findings.verdicts) == expected
    assert "not measured" not in {verdict.answer for verdict in findings.verdicts.values()}
    assert set(findings.analyses) == {entry.id for entry in study.file.analyses if entry.scales is None or "smoke" in entry.scales}
