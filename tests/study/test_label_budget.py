"""`labels tune` end to end on digits: a record that explains itself, and a command that does what it says."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.cache import Cache
from limbeck.choose.snapshot import Choice, Trial
from limbeck.cli import main
from limbeck.cli.labels import _sureness
from limbeck.errors import OptionError
from limbeck.study.label_budget import RECORD, margin, spread, tune_labels
from limbeck.study.label_options import TuneLabelsOptions
from limbeck.types.distilled import DistilledDataset

SMALL = {"bytes": "3kB", "model": "mlp:width=16", "protocol": "tiny", "expert_epochs": 8, "expert_lr": 0.2, "snapshots": 2, "temperatures": (1.0,)}


def test_the_choice_is_explained_and_its_command_makes_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    options = TuneLabelsOptions(**{**SMALL, "hard": False})
    record = tune_labels("digits", options, tmp_path)
    assert json.loads((tmp_path / RECORD).read_text()) == json.loads(json.dumps(record))
    assert len(record["candidates"]) == 2 * 1 * 2 * 2
    assert [row["factor"] for row in record["factors"]] == ["labels", *["expert step"] * 2, "temperature", *["entries"] * 2, *["precision"] * 2]
    assert {row["candidates"] for row in record["factors"]} == {4, 8}
    finalists = [row["validation_accuracy"][-1] for row in record["candidates"] if row["validation_accuracy"][-1] is not None]
    assert record["chosen"]["validation_accuracy"][-1] == max(finalists)
    assert record["chosen"]["bytes"] <= record["budget_bytes"] == 3000
    assert record["chosen"]["validation_students"] == [1, 1, 3]
    low, high = record["chosen"]["validation_interval_95"][-1]
    assert low <= record["chosen"]["validation_accuracy"][-1] <= high
    assert record["chosen"]["validation_interval_95"][:2] == [None, None]
    assert record["chosen"]["limited_by"] == "bytes"
    assert 0 < record["validation_margin_95"] < 1 / record["validation_images"] ** 0.5
    for row in record["candidates"]:
        assert all(isinstance(row[name], (int, float)) for name in ("expert step", "temperature", "entries", "images per class"))
        assert row["entries"] in (2, 10)
    command = shlex.split(record["command"])
    assert command[:3] == ["limbeck", "distill", "digits"]
    monkeypatch.setattr(sys, "argv", [*command, "--no-evaluate", "--out", str(tmp_path / "made")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    made = DistilledDataset.load(tmp_path / "made" / "distilled.safetensors")
    assert made.bytes["total"] == record["chosen"]["bytes"]
    assert made.provenance["expert_step"] == record["chosen"]["expert step"]
    # the expert of the search is the one that labels: nothing was trained anew
    assert len(list((tmp_path / "cache" / "experts").iterdir())) == 1


def test_finished_trials_are_not_done_again(tmp_path: Path) -> None:
    options = TuneLabelsOptions(**SMALL)
    first = tune_labels("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    trials = {path.stat().st_mtime_ns for path in (tmp_path / "cache" / "trials").iterdir()}
    again = tune_labels("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    assert {path.stat().st_mtime_ns for path in (tmp_path / "cache" / "trials").iterdir()} == trials
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_a_budget_that_no_class_can_fill_says_so_with_the_margin_of_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    words = "labels tune digits --bytes 1GB --model softmax --protocol tiny --expert-epochs 1 --snapshots 1 --temperatures 1 --validation 0.03"
    monkeypatch.setattr(sys, "argv", ["limbeck", *words.split(), "--precisions", "uint8", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of 1.0 GB: the smallest class has no more images, so the rest of the budget is not spent" in shown
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert f"judged on {record['validation_images']} validation images, whose sample makes an accuracy uncertain by" in shown
    close = {**record, "validation_margin_95": 0.05, "candidates": [{"validation_accuracy": [0.5, value]} for value in (0.9, 0.87, 0.8, None)]}
    assert "by 5.0 points (95 %); 2 of the 3 finalists are within that of the best, so they are not told apart" in _sureness(close)
    assert {row["limited_by"] for row in record["candidates"]} == {"images"}
    hard = record["candidates"][0]
    assert (hard["labels"], hard["expert step"], hard["temperature"], hard["entries"], hard["precision"]) == ("hard", None, None, None, None)


def test_wilsons_margin() -> None:
    found = margin(Choice(0, (Trial(0, 0, 1.0, (0.9, 1.0)),), 43), 0)
    # the bounds are where the accuracy is 1.96 standard errors away: roots of (p - x)^2 = z^2 x (1 - x) / n
    p, n, z2 = 0.95, 43, 1.959964**2
    roots = np.roots([1 + z2 / n, -(2 * p + z2 / n), p * p])
    assert found == pytest.approx(abs(roots[0] - roots[1]) / 2)
    assert margin(Choice(0, (), 0), 0) is None


def test_a_budget_is_needed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a byte budget is needed; use for example --bytes 100kB"):
        tune_labels("digits", TuneLabelsOptions(), tmp_path)


def test_steps_are_spread_over_their_order() -> None:
    assert spread([1, 2, 4, 8, 16, 32, 64], 3) == [1, 8, 64]
    assert spread([1, 2], 6) == [1, 2]
