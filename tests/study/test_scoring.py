"""Robust scores of a file, end to end on digits with students of twenty steps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.evaluate.robust import NATURAL_ZERO, normalized
from limbeck.progress import Reporter
from limbeck.report.page import write_report
from limbeck.study.distill import FILE, distill
from limbeck.study.options import DistillOptions, ScoreOptions
from limbeck.study.scoring import RATES, score_file

OPTIONS = ScoreOptions(protocol="tiny", students=3, search_students=1, full_epochs=4)


class Listening(Reporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set with soft labels and one with hard labels, and the cache that holds their expert."""
    root = tmp_path_factory.mktemp("sets")
    small = {"ipc": "2", "model": "mlp:width=16", "expert_epochs": 5, "expert_lr": 0.2, "protocol": "tiny", "evaluate": False}
    for labels in ("soft", "hard"):
        distill("digits", DistillOptions(**small, labels=labels), root / labels, cache=Cache(root / "cache"))
    return {"soft": root / "soft" / FILE, "hard": root / "hard" / FILE, "cache": root / "cache"}


@pytest.fixture(scope="module")
def soft(files: dict[str, Path]) -> dict[str, Any]:
    return score_file(files["soft"], OPTIONS, cache=Cache(files["cache"]))


def accuracy(record: dict[str, Any], role: str) -> np.ndarray:
    row = next(row for row in record["evaluations"] if row["role"] == role)
    return np.array(row["accuracy"]).reshape(-1)


def test_every_component_follows_from_the_arms(soft: dict[str, Any]) -> None:
    label, augmented = soft["score"]["label_robust"], soft["score"]["augmentation_robust"]
    means = {row["role"]: float(np.mean(row["accuracy"])) for row in soft["evaluations"]}
    assert list(means) == [
        "distilled",
        "random",
        "distilled-hard",
        "full",
        "distilled-augmented",
        "random-augmented",
        "distilled-plain",
        "random-plain",
    ]
    assert label["hlr"] == pytest.approx(means["full"] - means["distilled-hard"])
    assert label["ior"] == pytest.approx(means["distilled"] - means["random"])
    assert label["alpha"] == pytest.approx(0.5 * label["ior"] - 0.5 * label["hlr"])
    assert label["lrs"] == pytest.approx((math.exp(label["alpha"]) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert label["real_hard_from"] == "1 network(s) of 4 epochs"
    gaps = [means[f"distilled-{how}"] - means[f"random-{how}"] for how in ("augmented", "plain")]
    assert augmented["beta"] == pytest.approx(sum(gaps) / 2)
    assert augmented["ars"] == pytest.approx(normalized(augmented["beta"]))
    assert soft["score"]["natural_zero"] == NATURAL_ZERO


def test_the_interval_is_that_of_the_mean_advantage(soft: dict[str, Any]) -> None:
    label = soft["score"]["label_robust"]
    each = 0.5 * (accuracy(soft, "distilled") - accuracy(soft, "random")) - 0.5 * (label["real_hard"] - accuracy(soft, "distilled-hard"))
    half = 4.302653 * each.std(ddof=1) / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert label["lrs_low"] == pytest.approx(normalized(float(each.mean() - half)), abs=1e-6)
    assert label["lrs_high"] == pytest.approx(normalized(float(each.mean() + half)), abs=1e-6)


def test_random_arms_draw_new_images_for_every_student_under_soft_labels(soft: dict[str, Any]) -> None:
    rows = {row["role"]: row for row in soft["evaluations"]}
    assert np.array(rows["random"]["accuracy"]).shape == (3, 1, 1)
    assert len(set(rows["random"]["sets"])) == 3
    assert rows["random"]["bytes"]["labels"] == rows["distilled"]["bytes"]["labels"]  # soft, too
    assert np.array(rows["distilled"]["accuracy"]).shape == (1, 1, 3)


def test_every_arm_is_searched_alike_on_validation(soft: dict[str, Any]) -> None:
    rates = {f"{0.05 * factor:g}" for factor in RATES}
    for row in soft["evaluations"]:
        tried = row["validation_by_rate"]
        assert set(tried) == rates
        assert tried[f"{row['recipe']['lr']:g}"] == max(tried.values())


def test_arms_differ_in_augmentation_alone(soft: dict[str, Any]) -> None:
    rows = {row["role"]: row["recipe"] for row in soft["evaluations"]}
    assert rows["distilled-augmented"]["augment"] == "dsa:color_crop_cutout_scale_rotate"  # digits are not mirrored
    assert rows["distilled-plain"]["augment"] == rows["random-plain"]["augment"] == "none"
    assert soft["score"]["augmentation_robust"]["augmentation"] == rows["random-augmented"]["augment"]


def test_a_known_accuracy_is_taken_and_marked(files: dict[str, Path]) -> None:
    heard = Listening()
    options = OPTIONS.model_copy(update={"full_accuracy": 0.97, "which": "label"})
    record = score_file(files["soft"], options, cache=Cache(files["cache"]), reporter=heard)
    label = record["score"]["label_robust"]
    assert (label["real_hard"], label["real_hard_from"]) == (0.97, "given")
    assert "full" not in [row["role"] for row in record["evaluations"]]
    assert "augmentation_robust" not in record["score"]
    assert not any("training on all" in note for note in heard.heard)


def test_hard_labels_need_no_expert(files: dict[str, Path], tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"full_accuracy": 0.9, "which": "label"})
    record = score_file(files["hard"], options, cache=Cache(tmp_path))
    label = record["score"]["label_robust"]
    assert [row["role"] for row in record["evaluations"]] == ["distilled", "random"]
    assert label["set_hard"] == label["set_own"]


def test_only_the_augmentation_score_needs_no_full_data(files: dict[str, Path]) -> None:
    record = score_file(files["soft"], OPTIONS.model_copy(update={"which": "augmentation", "students": 1}), cache=Cache(files["cache"]))
    assert "label_robust" not in record["score"]
    assert record["score"]["augmentation_robust"]["ars_low"] is None  # one student has no interval


def test_the_cost_of_full_data_is_said_beforehand_and_too_short_a_run_is_noticed(files: dict[str, Path]) -> None:
    heard = Listening()
    score_file(files["hard"], OPTIONS.model_copy(update={"which": "label", "full_epochs": 1}), cache=Cache(files["cache"]), reporter=heard)
    assert (
        "training on all 1295 images takes 6 networks of 6 steps each (1 epochs; 5 learning rates are tried); --full-accuracy VALUE leaves it out"
        in heard.heard
    )
    assert any(note.startswith("training on all data did worse than training on this set under hard labels") for note in heard.heard)


def test_full_data_gets_as_many_steps_as_the_set(files: dict[str, Path]) -> None:
    record = score_file(files["hard"], OPTIONS.model_copy(update={"which": "label", "full_epochs": None, "students": 1}), cache=Cache(files["cache"]))
    assert next(row for row in record["evaluations"] if row["role"] == "full")["recipe"]["epochs"] == 20


def test_a_set_with_labels_per_view_is_compared_with_random_images_under_as_many(files: dict[str, Path], tmp_path: Path) -> None:
    """It replays its own augmentation, so it has a label-robust score alone."""
    small = {"ipc": "1", "model": "mlp:width=16", "expert_epochs": 5, "expert_lr": 0.2, "protocol": "tiny", "evaluate": False}
    options = DistillOptions(**small, method="random-real:views=3,view_augment=crop")
    distill("digits", options, tmp_path, cache=Cache(files["cache"]))
    heard = Listening()
    given = OPTIONS.model_copy(update={"full_accuracy": 0.9, "students": 2})
    record = score_file(tmp_path / FILE, given, cache=Cache(files["cache"]), reporter=heard)
    rows = {row["role"]: row for row in record["evaluations"]}
    assert list(rows) == ["distilled", "random", "distilled-hard"]
    assert rows["random"]["bytes"]["labels"] == rows["distilled"]["bytes"]["labels"] > 3 * rows["distilled-hard"]["bytes"]["labels"]
    reason = "this set has a label for each of its own augmented views and is trained on those alone, so there is no augmentation-robust score"
    assert reason in heard.heard
    with pytest.raises(OptionError, match=f"^{reason}; use --which label$"):
        score_file(tmp_path / FILE, given.model_copy(update={"which": "augmentation"}), cache=Cache(files["cache"]))


def test_a_score_without_the_expert_and_percentages_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the expert that labeled this file is not in the cache; give a checkpoint with --expert-file"):
        score_file(files["soft"], OPTIONS, cache=Cache(tmp_path))
    with pytest.raises(OptionError, match="^--full-accuracy is a fraction from 0 to 1, got 85; divide percentages by 100$"):
        score_file(files["soft"], ScoreOptions(full_accuracy=85.0), cache=Cache(tmp_path))


def test_a_record_of_scores_can_be_reported(soft: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(soft, None, tmp_path).read_text()
    for name in ("this set, hard labels", "all real images, hard labels", "random real, plain"):
        assert name in page
