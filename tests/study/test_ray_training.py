"""What each worker of an expert that several train together does; the training itself is `tests/train/test_share.py`."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.study import ray_training
from limbeck.study.tasks import ExpertTask, Premises
from limbeck.train.share import Share


@pytest.mark.parametrize("there", [True, False])
def test_a_worker_finds_a_source_that_is_named_from_the_folder_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    study, own = tmp_path / "study", tmp_path / "own"
    own.mkdir()
    if there:
        study.mkdir()
    monkeypatch.chdir(own)  # where Ray Train starts it; undone in the end
    opened = []

    def trajectory(settings: Any, work: Any, share: Any) -> Any:
        opened.append(Path(work.premises.source).resolve())
        return SimpleNamespace(key="made")

    monkeypatch.setattr(ExpertTask, "trajectory", trajectory)
    monkeypatch.setattr(Share, "of_process_group", lambda: SimpleNamespace(rank=0))
    told, settings = tmp_path / "told", {"workers": 2}
    premises = vars(Premises(source="shapes", open={}, pixels="raw", seed=0, cache=str(tmp_path)))
    ray_training._worker({"settings": settings, "premises": premises, "told": str(told), "folder": str(study)})
    assert opened == [(study if there else own) / "shapes"]
    assert Path(os.getcwd()) == (study if there else own)
    assert [file.read_text() for file in told.iterdir()] == ["made"]
