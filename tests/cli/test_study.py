import json
import re
from pathlib import Path

import pytest
from tests.study.studies import SMALL

from limbeck.cli import study as verbs
from limbeck.errors import OptionError
from limbeck.study.study_options import ExecutionOptions, StudyOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study file, and its run in ``out``."""
    found = tmp_path_factory.mktemp("cli")
    (found / "small.toml").write_text(SMALL)
    verbs.run(found / "small.toml", options=StudyOptions(out=found / "out", store=str(found / "store"), threads=1))
    return found


def test_a_run_says_what_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.resume(folder / "out", options=ExecutionOptions())
    shown = " ".join(capsys.readouterr().out.split())
    assert "holds" in shown
    assert "More images are better" in shown
    assert "tasks: expert 1 of 1, expert-score 2 of 2, set 6 of 6, evaluate 6 of 6; 0 done now, 15 were finished before" in shown
    assert "report.html" in shown


def test_status_and_report_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.status(folder / "out", json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["claims"]["more-is-better"]["answer"] == "holds"
    assert record["tasks"]["evaluate"] == {"finished": 6, "all": 6}
    assert record["analyses"]["students"]["axes"] == {"epoch": [1, 2], "ipc": ["ipc 1", "ipc 4"]}
    verbs.report(folder / "out", json=True)
    assert json.loads(capsys.readouterr().out)["report"] == str(folder / "out" / "report.html")


def test_a_dry_run_prices_every_kind_of_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.run(folder / "small.toml", options=StudyOptions(dry_run=True, threads=1), json=True)
    record = json.loads(capsys.readouterr().out)
    assert {line["kind"]: line["tasks"] for line in record["lines"]} == {"expert": 1, "set": 6, "evaluate": 6, "expert-score": 2}
    verbs.run(folder / "small.toml", options=StudyOptions(dry_run=True, threads=1))
    shown = " ".join(capsys.readouterr().out.split())
    assert "on a CPU, assuming 1.5e+11 operations a second (--rate sets another)" in shown
    assert "stated: seconds" in shown


def test_a_scale_that_a_study_does_not_have_is_named(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"small.toml has no scale 'paper'; known: smoke"):
        verbs.run(folder / "small.toml", options=StudyOptions(scale="paper"))


def test_the_report_stands_alone_and_shows_claims_and_figures(folder: Path) -> None:
    page, text = (folder / "out" / "report.html").read_text(), (folder / "out" / "report.md").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "default-src 'none'" in page
    assert page.count("<svg") == 2  # wide and narrow
    for sentence in ("Does it run?", "More images are better", "of course", "✓ holds", "? undecided", "evaluate", "6 of 6 finished"):
        assert sentence in page
    assert "| More images are better | of course | hard (ipc 4) minus hard (ipc 1): " in text
    assert "| **holds** |" in text
    figure = re.search(r"\(figures/(.*)\.svg\)", text)
    assert figure is not None
    assert (folder / "out" / "figures" / f"{figure[1]}.png").stat().st_size > 1000


def test_claims_of_other_scales_are_listed_as_not_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper = SMALL[SMALL.index("[scales.smoke.experts.main]") :].replace("scales.smoke", "scales.paper")
    content = SMALL.replace('id = "more-is-better"', 'id = "more-is-better"\nscales = ["paper"]').replace(
        'id = "trained"', 'id = "trained"\nscales = ["paper"]'
    )
    (tmp_path / "small.toml").write_text(content + paper)
    verbs.run(tmp_path / "small.toml", options=StudyOptions(out=tmp_path / "out", store=str(folder / "store"), threads=1))
    assert "not asked on this" in " ".join(capsys.readouterr().out.split())
    page, text = (tmp_path / "out" / "report.html").read_text(), (tmp_path / "out" / "report.md").read_text()
    assert "– not asked on this scale" in page
    assert "| More images are better | of course | asked on: paper |  | **not asked on this scale** |" in text


def test_the_report_says_how_often_everything_was_repeated(folder: Path) -> None:
    text = (folder / "out" / "report.md").read_text()
    assert "- Repeats: expert: once; soft: 2 students; hard: 2 students" in text
    assert "| students, n = 2 |" in text
    versions = next(line for line in text.splitlines() if line.startswith("- Versions: "))
    names = [part.split()[0] for part in versions.removeprefix("- Versions: ").split(", ")]
    assert names == sorted(names) == ["limbeck", "numpy", "python", "torch"]
