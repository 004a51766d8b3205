"""The main job end to end on digits, small: same bytes from the same seed, from an interrupted run and from a killed process."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from limbeck.cache import Cache
from limbeck.errors import LimbeckError, OptionError
from limbeck.evaluate.protocols import PROTOCOLS
from limbeck.progress import Reporter
from limbeck.study.distill import FILE, RECORD, distill, method_of, parse_duration, protocol_for
from limbeck.study.judge import evaluate_file
from limbeck.study.options import DistillOptions, EvaluationOptions
from limbeck.types.distilled import DistilledDataset

SMALL = {"ipc": "1", "model": "mlp:width=16", "expert_epochs": 2, "students": 2, "protocol": "tiny"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistilledDataset, dict]:
    out = tmp_path_factory.mktemp("job")
    dataset, record = distill("digits", DistillOptions(**SMALL), out, cache=Cache(out / "cache"))
    return out, dataset, record


def test_the_job_writes_a_file_and_a_record_that_agree(done: tuple[Path, DistilledDataset, dict]) -> None:
    out, dataset, record = done
    assert DistilledDataset.load(out / FILE).digest == dataset.digest == record["digest"]
    stored = json.loads((out / RECORD).read_text())
    assert [row["role"] for row in stored["evaluations"]] == ["distilled", "random-soft", "random-hard"]
    assert stored["counts"] == [1] * 10
    assert stored["expert"]["use"] == "labels"
    assert stored["evaluations"][1]["name"] == "random real, same soft labels"
    assert stored["expert"]["chosen_by"] == "successive halving on validation"
    assert stored["expert"]["chosen_step"] in [snapshot["step"] for snapshot in stored["expert"]["snapshots"]]
    for row in stored["evaluations"]:
        assert np.array(row["accuracy"]).shape == (1, 1, 2)
        assert row["protocol"] == "tiny/1"
        assert row["bytes"]["images"] == 640
        assert row["interval_95"]["covers"] == "students"


def test_the_two_baselines_share_their_images(done: tuple[Path, DistilledDataset, dict]) -> None:
    rows = {row["role"]: row for row in done[2]["evaluations"]}
    assert rows["random-soft"]["sets"] != rows["distilled"]["sets"]
    assert rows["random-soft"]["images"] == rows["random-hard"]["images"] == 10
    assert rows["random-hard"]["bytes"]["labels"] == 10


def test_the_saved_file_holds_images_of_the_training_split_alone(done: tuple[Path, DistilledDataset, dict]) -> None:
    from limbeck.data.opening import open_source
    from limbeck.data.splits import Splits

    dataset = done[1]
    splits = Splits.make(open_source("digits"), seed=0)
    held_out = set(splits.validation.record_digests().tolist()) | set(splits.test.open_for_measurement().record_digests().tolist())
    chosen = splits.train.read(dataset.provenance["indices"])
    assert bool((chosen == dataset.images).all())
    assert not held_out & set(splits.train.record_digests()[dataset.provenance["indices"]].tolist())


def test_same_seed_same_bytes_and_another_seed_others(done: tuple[Path, DistilledDataset, dict], tmp_path: Path) -> None:
    first = (done[0] / FILE).read_bytes()
    options = DistillOptions(**SMALL, evaluate=False)
    distill("digits", options, tmp_path / "same", cache=Cache(tmp_path / "cache"))
    assert (tmp_path / "same" / FILE).read_bytes() == first
    distill("digits", options.model_copy(update={"seed": 1}), tmp_path / "other", cache=Cache(tmp_path / "cache"))
    assert (tmp_path / "other" / FILE).read_bytes() != first


def test_a_second_run_trains_nothing(done: tuple[Path, DistilledDataset, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    for function in ("limbeck.experts.trajectory.fit", "limbeck.train.students.fit_many"):
        monkeypatch.setattr(function, refuse)
    out, _, record = done
    _, again = distill("digits", DistillOptions(**SMALL), out, cache=Cache(out / "cache"))
    accuracies = [[row["accuracy"] for row in each["evaluations"]] for each in (record, again)]
    assert accuracies[0] == accuracies[1]


def test_a_killed_process_continues_to_the_same_bytes(tmp_path: Path) -> None:
    arguments = ["--ipc", "1", "--model", "softmax", "--expert-epochs", "2", "--protocol", "label-worth-short", "--no-evaluate", "--threads", "1"]
    command = [sys.executable, "-m", "limbeck", "distill", "digits", *arguments, "--json", "--out"]
    environment = {**os.environ, "LIMBECK_CACHE": str(tmp_path / "cache")}
    pause = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([*command, str(tmp_path / "run")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pause.uniform(2, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "run")], env=environment, capture_output=True, check=True)
    subprocess.run(
        [*command, str(tmp_path / "straight")], env={**environment, "LIMBECK_CACHE": str(tmp_path / "other")}, capture_output=True, check=True
    )
    assert (tmp_path / "run" / FILE).read_bytes() == (tmp_path / "straight" / FILE).read_bytes()


def test_hard_labels_need_no_expert(tmp_path: Path) -> None:
    options = DistillOptions(**{**SMALL, "labels": "hard", "ipc": "2"}, evaluate=False)
    dataset, record = distill("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    assert record["expert"] is None
    assert dataset.labels.kind == "hard"
    assert dataset.bytes["labels"] == 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ensemble": True}, "an ensemble needs at least 2 experts, got 1; use --experts 5"),
        ({"ipc": None}, "a budget is needed; use --ipc N, --ipc proportional or --bytes SIZE"),
        ({"ipc": "1000"}, r"class '0' has \d+ training images, fewer than the 1000 asked for; use --ipc \d+, or --ipc proportional"),
        ({"bytes": "100kB"}, "--ipc N and --bytes both set the budget"),
        ({"ipc": None, "bytes": "10"}, "10 bytes do not pay for one image of each of the 10 classes"),
        ({"protocol": "dcc"}, "unknown protocol 'dcc'; did you mean 'dc'"),
        ({"selector": "herdin"}, "unknown selector 'herdin'; did you mean 'herding'"),
        ({"validation": 0.0}, "choosing the expert's snapshot needs a validation split"),
    ],
)
def test_a_wrong_option_is_one_sentence(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=sentence):
        distill("digits", DistillOptions(**{**SMALL, **changes}), tmp_path, cache=Cache(tmp_path / "cache"))


def test_an_output_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LimbeckError, match=r"cannot write .*; choose another folder with --out or free some space"):
        distill("digits", DistillOptions(**SMALL), tmp_path / "file" / "run", cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_digits_are_not_mirrored_by_a_protocol() -> None:
    assert "flip" in PROTOCOLS["dsa"].recipe.augment
    assert "flip" not in protocol_for("dsa", "digits").recipe.augment
    assert protocol_for("dsa", "fashion-mnist").recipe == PROTOCOLS["dsa"].recipe
    assert protocol_for("label-worth", "mnist").recipe.augment.endswith("align_corners=true")


def test_notes_reach_the_reporter(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listening(Reporter):
        def note(self, message: str) -> None:
            heard.append(message)

    distill("digits", DistillOptions(**{**SMALL, "labels": "hard"}, evaluate=False), tmp_path, cache=Cache(tmp_path / "cache"), reporter=Listening())
    assert any("no official test part" in message for message in heard)


def test_a_method_that_makes_images_stands_beside_as_many_real_ones_as_its_bytes_pay_for(tmp_path: Path) -> None:
    options = DistillOptions(**SMALL, method="dm@smoke", steps=3, checks=1)
    dataset, record = distill("digits", options, tmp_path / "run", cache=Cache(tmp_path / "cache"))
    rows = {row["role"]: row for row in record["evaluations"]}
    assert list(rows) == ["distilled", "random-hard", "random-hard-bytes"]
    assert dataset.images.dtype.is_floating_point
    assert rows["random-hard"]["images"] == 10
    assert rows["random-hard-bytes"]["images"] == 30  # float32 pixels cost as much as nearly four real images, and every class gets as many
    assert rows["random-hard-bytes"]["bytes"]["total"] <= rows["distilled"]["bytes"]["total"]
    assert record["optimization"]["steps"] == 3
    assert [entry for entry in record["optimization"]["curve"] if "validation_accuracy" in entry]
    assert record["provenance"]["method_options"]["steps"] == 3


def test_learned_labels_stand_beside_hard_labels_at_the_same_bytes_too(tmp_path: Path) -> None:
    options = DistillOptions(**SMALL | {"expert_epochs": 1, "model": "softmax"}, method="bptt@smoke", steps=2)
    _, record = distill("digits", options, tmp_path / "run", cache=Cache(tmp_path / "cache"))
    rows = {row["role"]: row for row in record["evaluations"]}
    assert list(rows) == ["distilled", "random-soft", "random-hard", "random-soft-bytes", "random-hard-bytes"]
    total = {role: row["bytes"]["total"] for role, row in rows.items()}
    assert total["random-soft-bytes"] <= total["distilled"]
    assert total["random-hard-bytes"] <= total["distilled"]
    assert rows["random-hard-bytes"]["images"] > rows["random-soft-bytes"]["images"]
    # no expert labeled this set, so the random images' labels are not the same as its own
    assert rows["random-soft"]["name"] == "random real, an expert's soft labels"
    assert record["expert"]["use"] == "baseline"
    heard: list[str] = []

    class Hearing(Reporter):
        def note(self, message: str) -> None:
            heard.append(message)

    evaluate_file(tmp_path / "run" / FILE, EvaluationOptions(protocol="tiny", students=2), cache=Cache(tmp_path / "cache"), reporter=Hearing())
    assert "no expert labeled this file, so random real images under soft labels are left out; --expert-file brings an expert for them" in heard


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("20 min", 1200)])
def test_time_budgets_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-3s", "0", "5 days"])
def test_what_is_no_time_is_one_sentence(text: str) -> None:
    with pytest.raises(OptionError, match=f"^a time budget looks like 90s, 20min or 1.5h, got '{text}'$"):
        parse_duration(text)


def test_a_protocol_that_cannot_teach_a_method_s_labels_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    options = DistillOptions(ipc="1", model="mlp", method="frepo@smoke", protocol="dc")
    with pytest.raises(OptionError) as caught:
        distill("digits", options, tmp_path / "out")
    assert str(caught.value) == (
        "frepo@smoke learns labels for students that are trained by mse, but protocol dc trains them by cross-entropy; use --protocol frepo"
    )
    assert not (tmp_path / "out").exists()


def test_a_method_is_suited_to_its_source_unless_it_follows_the_students() -> None:
    asked = {"ipc": "1", "method": "dsa"}
    assert "flip" not in method_of(DistillOptions(**asked), "digits").options.augment
    assert method_of(DistillOptions(**asked), "fashion-mnist").options.augment == "dsa"
    assert method_of(DistillOptions(ipc="1", method="mtt"), "fashion-mnist").options.augment == "students"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "mtt"}, "needs experts of 21 epochs, got 2; use --expert-epochs 21"),
        (
            {"method": "mtt@smoke", "expert_epochs": 4, "expert_model": "softmax"},
            "needs experts of the architecture that it distills for, got experts of softmax",
        ),
        ({"method": "sre2l"}, "matches the running statistics of batch normalization, which mlp"),
        ({"method": "sre2l:views=2", "labels": "hard"}, "labels per view are an expert's soft labels, got views=2"),
        ({"method": "ncfm@smoke", "expert_model": "softmax"}, "ncfm needs experts of the architecture"),
        ({"method": "rded:factor=9"}, "rded puts factor x factor patches into an image of 8x8 pixels, got factor=9"),
    ],
)
def test_an_impossible_job_is_refused_before_experts_are_trained(
    changes: dict, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrained(*given: object, **options: object) -> None:
        raise AssertionError("an expert was trained")

    monkeypatch.setattr("limbeck.study.experts.train_expert", untrained)
    with pytest.raises(OptionError, match=re.escape(sentence)):
        distill("digits", DistillOptions(**SMALL | changes), tmp_path, cache=Cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        (
            {"method": "random-real", "budget": "5s", "steps": 5},
            ["--steps does nothing here: random-real has no number of steps to choose", "--budget does nothing here: random-real takes no steps"],
        ),
        (
            {"method": "frepo@smoke", "steps": 2, "labels": "soft", "top_k": 2},
            ["--labels soft, --top-k: for the random images beside this set alone, since frepo@smoke learns the set's labels"],
        ),
        ({"method": "dm@smoke", "steps": 2, "budget": "1h"}, []),
    ],
)
def test_options_that_do_nothing_are_noted(changes: dict, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Hearing(Reporter):
        def note(self, message: str) -> None:
            heard.append(message)

    def untrained(*given: object, **options: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("limbeck.study.distill.prepare_experts", untrained)
    with pytest.raises(InterruptedError):
        distill(
            "digits",
            DistillOptions(**SMALL | {"model": "softmax"} | changes, evaluate=False),
            tmp_path,
            cache=Cache(tmp_path / "cache"),
            reporter=Hearing(),
        )
    assert heard[1:] == notes  # the first says how digits are split
