"""`limbeck analyze` as a user meets it: the list, a run, JSON, sentences and exit codes."""

import json
from pathlib import Path

import pytest
from tests.cli.running import run

from limbeck.analyze import ANALYSES

FAST = ["--protocol", "label-worth-short", "--option", "recognition:models=softmax", "--option", "recognition:epochs=1", "--seeds", "1"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from limbeck.study.distill import distill
    from limbeck.study.options import DistillOptions

    out = tmp_path_factory.mktemp("run")
    distill("digits", DistillOptions(ipc="1", model="softmax", labels="hard", evaluate=False), out)
    return out / "distilled.safetensors"


def test_without_names_it_lists_what_can_be_asked(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["analyze", str(file), "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out) == {name: ANALYSES[name].summary for name in ANALYSES}


def test_a_run_writes_a_page_and_says_where(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["analyze", str(file), "recognition", *FAST], monkeypatch, capsys)
    assert code == 0
    assert "Do networks that were trained on real images recognize the distilled ones?" in out
    assert f"page: {file.parent / 'analysis' / 'analysis.html'}" in out
    code, out, _ = run(["analyze", str(file), "recognition", *FAST, "--json"], monkeypatch, capsys)
    shown = json.loads(out)
    assert shown["analyses"]["recognition"] == json.loads((file.parent / "analysis" / "recognition.json").read_text())
    assert Path(shown["page"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recognitoin"], "unknown analysis 'recognitoin'; did you mean 'recognition'?"),
        (["agreement", "--validation", "0"], "agreement finds the early-stop point on validation images, and there are none; use --validation 0.1"),
        (["recognition", "--option", "recognition:epochs=x"], "option epochs of analysis recognition: input should be a valid integer"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], sentence: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["analyze", str(file), *arguments], monkeypatch, capsys)
    assert code == 2
    assert sentence in err


def test_an_analysis_that_cannot_be_done_is_skipped_among_all(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: ANALYSES._entries[name] for name in ("recognition", "agreement")}
    monkeypatch.setattr(ANALYSES, "_entries", kept)
    code, out, _ = run(["analyze", str(file), "--all", "--validation", "0", *FAST], monkeypatch, capsys)
    assert code == 0
    assert "skipped agreement: agreement finds the early-stop point on validation images" in out


def test_an_analysis_is_explained_with_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["explain", "mixing"], monkeypatch, capsys)
    assert code == 0
    assert out.startswith("mixing (analysis)\n\nTest accuracy of students")
    assert "\n  teacher_epochs (2): epochs of the expert" in out
