"""`labels tune` end to end on digits: a record that explains itself, and a command that does what it says."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from limbeck.cache import Cache
from limbeck.cli import main
from limbeck.errors import OptionError
from limbeck.study.label_budget import RECORD, spread, tune_labels
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
    command = shlex.split(record["command"])
    assert command[:3] == ["limbeck", "distill", "digits"]
    monkeypatch.setattr(sys, "argv", [*command, "--no-evaluate", "--out", str(tmp_path / "made")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    made = DistilledDataset.load(tmp_path / "made" / "distilled.safetensors")
    assert made.bytes["total"] == record["chosen"]["bytes"]
    assert made.provenance["expert_step"] == int(record["chosen"]["expert step"])
    # the expert of the search is the one that labels: nothing was trained anew
    assert len(list((tmp_path / "cache" / "experts").iterdir())) == 1


def test_finished_trials_are_not_done_again(tmp_path: Path) -> None:
    options = TuneLabelsOptions(**SMALL)
    first = tune_labels("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    trials = {path.stat().st_mtime_ns for path in (tmp_path / "cache" / "trials").iterdir()}
    again = tune_labels("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    assert {path.stat().st_mtime_ns for path in (tmp_path / "cache" / "trials").iterdir()} == trials
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_a_budget_is_needed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a byte budget is needed; use for example --bytes 100kB"):
        tune_labels("digits", TuneLabelsOptions(), tmp_path)


def test_steps_are_spread_over_their_order() -> None:
    assert spread([1, 2, 4, 8, 16, 32, 64], 3) == [1, 8, 64]
    assert spread([1, 2], 6) == [1, 2]
