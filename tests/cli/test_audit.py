"""`limbeck audit` as a user meets it: exit codes, sentences, JSON, and a page on disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.running import run

from limbeck.evaluate.protocols import PROTOCOLS, Protocol
from limbeck.study.distill import FILE, distill
from limbeck.study.options import DistillOptions
from limbeck.types.recipe import Recipe

HARD = "audit digits --ipc 2 --labels hard --model softmax --arm end-to-end --canaries 50 --train-images 300 --students 1 --protocol quick"


@pytest.fixture(scope="module", autouse=True)
def _quick_protocol() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        recipe = Recipe(optimizer="adam", lr=0.01, weight_decay=0, steps=30)
        patch.setitem(PROTOCOLS, "quick", Protocol(name="quick", version=1, recipe=recipe, source="these tests", note="30 steps of Adam"))
        yield


def test_a_clean_audit_leaves_with_0_and_says_what_it_costs_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [*HARD.split(), "--skip", "membership", "--tolerance", "0.4", "--out", str(tmp_path)]
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 0
    assert "verdict: clean (exit code 0)" in out
    assert "cost: 0 experts" in err
    assert "exposure, end to end" in (tmp_path / "audit.html").read_text()


def test_what_was_not_checked_leaves_with_4_and_json_stays_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run([*HARD.split(), "--shadows", "0", "--tolerance", "0.4", "--out", str(tmp_path), "--json"], monkeypatch, capsys)
    record = json.loads(out)
    assert (code, record["exit_code"], record["verdict"]) == (4, 4, "not checked")
    assert record["page"] == str(tmp_path / "audit.html")


def test_a_file_that_copies_private_images_without_saying_so_leaves_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from limbeck.types.distilled import DistilledDataset

    dataset, _ = distill("digits", DistillOptions(ipc="1", model="softmax", labels="hard", evaluate=False), tmp_path)
    DistilledDataset(**{**vars(dataset), "provenance": {"method": "magic"}}).save(tmp_path / "other.safetensors")
    code, out, _ = run(["audit", str(tmp_path / "other.safetensors"), "--private", "digits", "--out", str(tmp_path)], monkeypatch, capsys)
    assert code == 3
    assert "10 images of the file are private images" in " ".join(out.replace("│", " ").split())
    code, _, _ = run(["audit", str(tmp_path / FILE), "--private", "digits", "--out", str(tmp_path)], monkeypatch, capsys)
    assert code == 4


def test_the_price_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run([*HARD.split(), "--price", "--out", str(tmp_path / "nothing")], monkeypatch, capsys)
    assert (code, out) == (0, "")
    assert "cost: 0 experts of" in err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["audit", "digits"], "a budget is needed; use --ipc N"),
        (["audit", "digits", "--ipc", "1", "--draws", "3"], "an audit makes and judges one set, so --draws has no meaning in it; leave it out"),
        (["audit", "digits", "--ipc", "1", "--skip", "thinking"], "--skip knows exposure, membership, copies, got 'thinking'"),
        (["audit", "digits", "--ipc", "1", "--private", "digits"], "--private goes with a distilled .safetensors file, but 'digits' is a source"),
        (["audit", "missing.safetensors", "--private", "digits"], "no such file: 'missing.safetensors'; check the path"),
        (["audit", "digits", "--ipc", "1", "--alpha", "2"], "--alpha input should be less than 1, got"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert out == ""
    assert sentence in err
