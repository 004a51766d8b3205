"""Jobs on a distilled file: evaluation with baselines, comparison, training a user's own model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.cache import Cache
from limbeck.errors import FileFormatError, OptionError
from limbeck.experts.expert import Expert
from limbeck.experts.trajectory import find_trajectory
from limbeck.progress import Reporter
from limbeck.report.page import write_report
from limbeck.report.tables import gains
from limbeck.study.distill import FILE, distill
from limbeck.study.judge import compare_rows, evaluate_file, load_record, train_on_file
from limbeck.study.options import DistillOptions, EvaluationOptions
from limbeck.types.distilled import DistilledDataset
from limbeck.types.pixels import PixelSpace

OPTIONS = EvaluationOptions(protocol="tiny", students=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    options = DistillOptions(ipc="2", model="mlp:width=16", expert_epochs=5, expert_lr=0.2, students=2, protocol="tiny", draws=2)
    distill("digits", options, out, cache=Cache(out / "cache"))
    return out


def test_a_file_evaluates_on_its_own_source_with_both_baselines(run: Path) -> None:
    record = evaluate_file(run / FILE, OPTIONS, cache=Cache(run / "cache"))
    assert [row["role"] for row in record["evaluations"]] == ["distilled", "random-soft", "random-hard"]
    first_draw = load_record(run)["evaluations"][0]["accuracy"][0]
    assert record["evaluations"][0]["accuracy"] == [first_draw]  # the same students, from the cache or trained anew


def test_without_the_expert_the_soft_baseline_is_left_out(run: Path, tmp_path: Path) -> None:
    record = evaluate_file(run / FILE, OPTIONS, cache=Cache(tmp_path))
    assert [row["role"] for row in record["evaluations"]] == ["distilled", "random-hard"]


def test_hard_labels_are_an_ablation_of_the_file(run: Path) -> None:
    record = evaluate_file(run / FILE, OPTIONS.model_copy(update={"baselines": False}), labels="hard", cache=Cache(run / "cache"))
    assert record["bytes"]["labels"] == 20
    assert len(record["evaluations"]) == 1


def test_stored_and_hard_labels_beside_random_images_with_both(run: Path, tmp_path: Path) -> None:
    """Figure 1 of the label paper for one file: four rows, whose students are those of two runs with one kind of labels each."""
    cache = Cache(run / "cache")
    record = evaluate_file(run / FILE, OPTIONS, labels="both", cache=cache)
    rows = {row["role"]: row for row in record["evaluations"]}
    assert list(rows) == ["distilled", "distilled-hard", "random-soft", "random-hard"]
    assert rows["distilled-hard"]["name"] == "this set, hard labels"
    assert rows["distilled-hard"]["bytes"]["labels"] == 20 < rows["distilled"]["bytes"]["labels"]
    alone = {labels: evaluate_file(run / FILE, OPTIONS, labels=labels, cache=cache)["evaluations"][0] for labels in ("stored", "hard")}
    assert rows["distilled"]["accuracy"] == alone["stored"]["accuracy"]
    assert rows["distilled-hard"]["accuracy"] == alone["hard"]["accuracy"]
    assert record["label_rule"]["kind"] == "soft"
    page = write_report(record, DistilledDataset.load(run / FILE), tmp_path).read_text()
    assert "this set, hard labels" in page
    assert [gain.over.role for gain in gains(record)] == ["distilled-hard", "random-soft", "random-hard"]


def test_a_set_of_hard_labels_has_one_row_even_when_both_are_asked_for(run: Path, tmp_path: Path) -> None:
    heard: list[str] = []

    class Listening(Reporter):
        def note(self, message: str) -> None:
            heard.append(message)

    DistilledDataset.load(run / FILE).with_hard_labels().save(tmp_path / "hard.safetensors")
    record = evaluate_file(tmp_path / "hard.safetensors", OPTIONS, labels="both", cache=Cache(run / "cache"), reporter=Listening())
    assert [row["role"] for row in record["evaluations"]] == ["distilled", "random-hard"]
    assert "the labels of this file are hard already, so they are evaluated once" in heard


def test_a_given_expert_makes_the_soft_baseline(run: Path, tmp_path: Path) -> None:
    """For a file whose own expert is gone, and for one of hard labels, which never had any."""
    expert = find_trajectory(Cache(run / "cache"), DistilledDataset.load(run / FILE).provenance["expert_keys"][0])
    assert expert is not None
    last = expert.at(expert.last.step)
    last.save(tmp_path / "expert.safetensors", {})
    DistilledDataset.load(run / FILE).with_hard_labels().save(tmp_path / "hard.safetensors")
    for file in (run / FILE, tmp_path / "hard.safetensors"):
        record = evaluate_file(file, OPTIONS, expert_file=tmp_path / "expert.safetensors", cache=Cache(tmp_path / "cache"))
        assert [row["role"] for row in record["evaluations"]] == ["distilled", "random-soft", "random-hard"]


def test_a_set_in_network_space_is_measured_on_test_images_in_that_space(run: Path, tmp_path: Path) -> None:
    """The same set stored as pixels and as network inputs gives the same students and the same accuracy."""
    dataset = DistilledDataset.load(run / FILE)
    inside = DistilledDataset(**{**vars(dataset), "images": dataset.inputs(), "pixels": PixelSpace(dataset.pixels.steps, "network")})
    inside.save(tmp_path / "network.safetensors")
    cache = Cache(run / "cache")
    first, second = (evaluate_file(file, OPTIONS, cache=cache)["evaluations"] for file in (run / FILE, tmp_path / "network.safetensors"))
    np.testing.assert_allclose(first[0]["loss"], second[0]["loss"], rtol=1e-4)
    assert [row["accuracy"] for row in first[1:]] == [row["accuracy"] for row in second[1:]]
    results = [
        train_on_file(file, tmp_path / "model.safetensors", model="softmax", protocol="tiny")
        for file in (run / FILE, tmp_path / "network.safetensors")
    ]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    expert = Expert.load(tmp_path / "model.safetensors")
    assert torch.equal(expert.pixels(dataset.images.float() / 255), dataset.inputs())  # a checkpoint's pixel space takes pixels


def test_a_result_against_itself_differs_by_nothing(run: Path) -> None:
    row = load_record(run)["evaluations"][0]
    difference = compare_rows(row, row)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_a_paired_difference_is_the_difference_of_means(run: Path) -> None:
    first, second, _ = load_record(run)["evaluations"]
    difference = compare_rows(first, second)
    assert difference.mean == pytest.approx(np.mean(first["accuracy"]) - np.mean(second["accuracy"]))
    assert difference.low <= difference.mean <= difference.high


def test_unlike_results_are_not_paired(run: Path) -> None:
    row = load_record(run)["evaluations"][0]
    with pytest.raises(OptionError, match=r"the two results differ in protocol \(tiny/1 and dc/1\), so they are not paired"):
        compare_rows(row, {**row, "protocol": "dc/1"})
    with pytest.raises(OptionError, match=r"have 2 draw\(s\) x 1 expert\(s\) x 2 student\(s\) and 1 draw"):
        compare_rows(row, {**row, **{key: row[key][:1] for key in ("accuracy", "loss", "worst_class")}})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"evaluations": 3}'])
def test_a_file_that_is_no_result_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(FileFormatError, match="is not a limbeck result; give a run folder or a result.json that limbeck wrote"):
        load_record(tmp_path)
    with pytest.raises(FileFormatError, match="no results at"):
        load_record(tmp_path / "nowhere")


def test_training_saves_a_checkpoint_that_predicts(run: Path, tmp_path: Path) -> None:
    result = train_on_file(run / FILE, tmp_path / "model.safetensors", model="softmax", protocol="label-worth-short")
    expert = Expert.load(tmp_path / "model.safetensors")
    dataset = DistilledDataset.load(run / FILE)
    with torch.no_grad():
        logits = expert.network.loaded(expert.state)(expert.pixels(dataset.images))
    assert (logits.argmax(1) == dataset.targets().argmax(1)).float().mean() > 0.8
    assert 0.3 < result["test_accuracy"] <= 1  # chance is 0.1
    assert result["students"] == 1


def test_a_file_cannot_make_limbeck_import_code(run: Path, tmp_path: Path) -> None:
    dataset = DistilledDataset.load(run / FILE)
    hostile = DistilledDataset(**{**vars(dataset), "architecture": {"name": "os:getcwd", "options": {}}})
    hostile.save(tmp_path / "hostile.safetensors")
    with pytest.raises(OptionError, match="asks to import 'os:getcwd', which is code; if you trust it, say so with --model os:getcwd"):
        train_on_file(tmp_path / "hostile.safetensors", tmp_path / "model.safetensors")


def test_records_are_json_without_nan(run: Path) -> None:
    assert json.loads(json.dumps(load_record(run), allow_nan=False)) == load_record(run)


def test_distilled_images_that_are_test_images_are_noticed(run: Path, tmp_path: Path) -> None:
    from limbeck.data.opening import open_source
    from limbeck.data.splits import Splits

    heard: list[str] = []

    class Listening(Reporter):
        def note(self, message: str) -> None:
            heard.append(message)

    dataset = DistilledDataset.load(run / FILE)
    test = Splits.make(open_source("digits"), seed=0).test.open_for_measurement()
    leaked = DistilledDataset(**{**vars(dataset), "images": test.read(range(len(dataset)))})
    leaked.save(tmp_path / "leaked.safetensors")
    train_on_file(tmp_path / "leaked.safetensors", tmp_path / "model.safetensors", model="softmax", protocol="tiny", reporter=Listening())
    assert "20 of the 20 distilled images are test images of digits: its accuracy is not a measurement" in heard


def test_a_result_never_overwrites_the_file_it_is_made_from(run: Path) -> None:
    before = (run / FILE).read_bytes()
    with pytest.raises(OptionError, match="the result would overwrite .* itself; give another place with --out"):
        train_on_file(run / FILE, run / FILE, model="softmax")
    assert (run / FILE).read_bytes() == before


def test_a_learned_rate_is_named_and_is_tried_when_rates_are_chosen(run: Path, tmp_path: Path) -> None:
    dataset = DistilledDataset.load(run / FILE)
    file = tmp_path / "learned.safetensors"
    replace(dataset, step_size=0.3).save(file)
    record = evaluate_file(file, OPTIONS, cache=Cache(tmp_path / "cache"))
    rates = {row["role"]: (row["rate"], row["recipe"]["lr"]) for row in record["evaluations"]}
    assert rates["distilled"] == ("learned", 0.3)
    assert rates["random-hard"] == (None, 0.05)
    seen: list[list[float]] = []

    def chosen(rates, *given, **options):  # type: ignore[no-untyped-def]
        seen.append(list(rates))
        return rates[-1], {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.study.distill.best_learning_rate", chosen)
        record = evaluate_file(file, OPTIONS.model_copy(update={"tune_lr": True}), cache=Cache(tmp_path / "cache"))
    assert seen[0] == [0.005, 0.025, 0.05, 0.25, 0.3]
    assert seen[1] == [0.005, 0.025, 0.05, 0.25]
    assert {row["rate"] for row in record["evaluations"]} == {"chosen"}
