"""The audit end to end on digits: an over-trained expert of canaries is caught, hard labels are not, stopping loses nothing, and codes are as documented."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians

from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.evaluate.protocols import PROTOCOLS, Protocol
from limbeck.progress import Reporter
from limbeck.report.audit import write_audit_page
from limbeck.study.audit_options import AuditOptions
from limbeck.study.auditing import RECORD, Output, Unmade, _attacks, audit_source, set_up
from limbeck.study.auditing_file import audit_file
from limbeck.study.distill import FILE, distill
from limbeck.study.options import DistillOptions
from limbeck.types.recipe import Recipe

#: A linear expert that has learned 40 random labels by heart, and 80 of its soft labels, which nearly determine its 650 weights.
OVERTRAINED: dict[str, Any] = {
    "ipc": "8",
    "model": "softmax",
    "canaries": 40,
    "train_images": 170,
    "expert_epochs": 60,
    "expert_lr": 0.5,
    "snapshot": "last",
    "temperature": 20.0,
    "students": 2,
    "arm": "expert",
    "protocol": "quick",
    "redraws": 500,
    "tolerance": 0.4,
}


@pytest.fixture(scope="module", autouse=True)
def _quick_protocol() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        recipe = Recipe(optimizer="adam", lr=0.01, weight_decay=0, steps=300)
        patch.setitem(PROTOCOLS, "quick", Protocol(name="quick", version=1, recipe=recipe, source="these tests", note="300 steps of Adam"))
        yield


@pytest.fixture(scope="module")
def leak(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("audit")
    options = AuditOptions(**OVERTRAINED, shadows=3, defend="temperature=1,top-k=1,noise=2,expert-epochs=3,precision=uint8")
    return out, audit_source("digits", options, out, cache=Cache(out / "cache"))


def found(record: dict[str, Any], check: str) -> dict[str, Any]:
    return next(finding for finding in record["findings"] if finding["check"] == check)


def test_a_planted_leak_is_found_by_students_and_its_controls_are_not_leaks(leak: tuple[Path, dict[str, Any]]) -> None:
    _, record = leak
    main = found(record, "exposure, expert only")
    assert main["verdict"] == "leak"
    assert main["evidence"]["value"] > 0.3
    assert main["evidence"]["p_value"] < 1e-6
    assert main["false_positive_rate"] <= 0.01 / record["tests"]
    for control in ("hard labels", "soft labels shuffled within classes"):
        assert found(record, f"exposure, expert only, control: {control}")["verdict"] != "leak"
        assert not found(record, f"exposure, expert only, control: {control}")["required"]
    assert record["expert"]["canary"] > 0.9
    assert abs(record["expert"]["control"] - 0.1) < 0.2
    assert (record["verdict"], record["exit_code"]) == ("leak", 3)


def test_membership_is_inferred_and_rates_that_cannot_be_resolved_are_not_given(leak: tuple[Path, dict[str, Any]]) -> None:
    attacks = leak[1]["attacks"]["attacks"]
    assert set(attacks) == {"students (LiRA)", "students (RMIA)", "published labels"}
    assert attacks["students (LiRA)"]["auc"] > 0.75
    assert attacks["students (LiRA)"]["non_members"] == 4 * 40
    assert attacks["students (LiRA)"]["rates"] == {"0.001": None, "0.01": None}
    assert "1.0% false positives not resolvable with 160 non-members" in found(leak[1], "membership, students (LiRA)")["sentence"]


def test_the_frontier_has_a_row_for_each_defense_and_early_stopping_defends(leak: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["defense"]: row for row in leak[1]["frontier"]}
    assert list(rows) == ["as published", "temperature 1", "top-k 1", "noise 2", "expert-epochs 3", "precision uint8"]
    assert rows["expert-epochs 3"]["value"] < rows["as published"]["value"] - 0.2
    assert rows["top-k 1"]["bytes"]["total"] < rows["as published"]["bytes"]["total"]
    assert rows["as published"]["value"] == found(leak[1], "exposure, expert only")["evidence"]["value"]


def test_the_record_is_plain_json_and_the_page_needs_nothing_else(leak: tuple[Path, dict[str, Any]]) -> None:
    out, record = leak
    assert json.loads((out / RECORD).read_text()) == json.loads(json.dumps(record))
    html = write_audit_page(record, out).read_text()
    assert "default-src 'none'" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    for words in ("Exposure of canaries", "Membership inference", "Defenses", "not resolvable with so few non-members", "How to read this"):
        assert words in html
    assert sorted(path.name for path in (out / "figures").glob("*.svg")) == ["exposure.svg", "frontier.svg", "roc.svg"]


def test_a_second_run_trains_nothing_and_finds_the_same(leak: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, record = leak

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("limbeck.experts.trajectory.fit", refuse)
    monkeypatch.setattr("limbeck.study.auditing._train", refuse)
    monkeypatch.setattr("limbeck.study.auditing._seconds_per_image", lambda *arguments: 0.0)
    again = audit_source("digits", AuditOptions(**OVERTRAINED, shadows=3), tmp_path, cache=Cache(out / "cache"))
    assert again["findings"] == record["findings"]


def test_hard_labels_of_an_overtrained_expert_are_clean(tmp_path: Path) -> None:
    options = AuditOptions(**{**OVERTRAINED, "labels": "hard", "temperature": 1.0, "arm": "end-to-end"}, skip=("membership",))
    record = audit_source("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    assert found(record, "exposure, end to end")["verdict"] == "clean"
    assert (record["verdict"], record["exit_code"]) == ("clean", 0)
    assert found(record, "membership")["verdict"] == "not checked"
    assert found(record, "identification ratio")["verdict"] == "clean"


def test_what_was_not_run_is_never_clean(tmp_path: Path) -> None:
    options = AuditOptions(**{**OVERTRAINED, "labels": "hard", "temperature": 1.0, "arm": "end-to-end"}, shadows=0)
    record = audit_source("digits", options, tmp_path, cache=Cache(tmp_path / "cache"))
    assert found(record, "membership")["verdict"] == "not checked"
    assert (record["verdict"], record["exit_code"]) == ("not checked", 4)


def test_without_validation_records_rmia_is_not_checked_and_still_required(tmp_path: Path) -> None:
    """Only --skip takes a requirement away; and labels of classes alone leave nothing to attack."""
    options = AuditOptions(**{**OVERTRAINED, "labels": "hard", "temperature": 1.0, "arm": "end-to-end"}, shadows=3, validation=0)
    bench = set_up("digits", options, Cache(tmp_path), Reporter())
    dataset = distilled(gaussians(2))
    said = Output(torch.zeros(80, 10), torch.zeros(0, 10), 0.1)
    attacks = _attacks(bench, [dataset, dataset], [said, said])
    assert attacks["students (RMIA)"] == Unmade("There are no validation records to compare with; use --validation 0.1.", required=True)
    assert attacks["published labels"] == Unmade("Only soft labels, one an image, are attacked by themselves.", required=False)


def test_experts_of_differential_privacy_are_part_of_the_price(tmp_path: Path) -> None:
    given = {**OVERTRAINED, "experts": 2, "shadows": 3, "price": True}
    costs = [
        audit_source("digits", AuditOptions(**given, defend=defend), tmp_path, cache=Cache(tmp_path))["cost"]
        for defend in ("noise=1/2", "dp=2/8", "noise=1,dp=8")
    ]
    assert [cost["experts"] for cost in costs] == [6, 10, 8]
    assert [cost["private_experts"] for cost in costs] == [0, 4, 2]
    assert "10 experts of" in costs[1]["sentence"]
    assert "(4 of them by DP-SGD, which takes longer than is priced)" in costs[1]["sentence"]


def test_the_cost_is_said_first_and_price_stops_there(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def note(self, message: str) -> None:
            said.append(message)

    record = audit_source("digits", AuditOptions(**OVERTRAINED, shadows=3, price=True), tmp_path, cache=Cache(tmp_path), reporter=Listener())
    cost = record["cost"]
    assert any(message.startswith("cost: 5 experts of ") for message in said)
    assert (cost["experts"], cost["students"], cost["student_images"]) == (5, 3 * 2 + 4, 300 * 80)
    assert record["findings"] == []
    assert not (tmp_path / RECORD).exists()


def test_steps_of_a_method_are_part_of_the_price(tmp_path: Path) -> None:
    short, long = (
        audit_source("digits", AuditOptions(method=f"dm:steps={steps},real_batch=64", ipc="1", price=True), tmp_path, cache=Cache(tmp_path))["cost"]
        for steps in (10, 100_000)
    )
    assert 0 < short["method_steps"] * 10_000 == long["method_steps"]
    assert f"{long['method_steps']:,} steps of the method in all" in long["sentence"]
    assert long["seconds"] > 10 * short["seconds"]


def test_canaries_are_nowhere_in_the_published_set_and_controls_in_no_data(tmp_path: Path) -> None:
    bench = set_up("digits", AuditOptions(**{**OVERTRAINED, "arm": "both"}), Cache(tmp_path), Reporter())
    secret = bench.plant.train.record_digests()[bench.plant.records]
    for arm in bench.arms:
        problem = bench.arm_problem(arm)
        canaries, controls = secret[:40], secret[40:]
        assert not np.isin(controls, problem.train.record_digests()).any()
        assert np.isin(canaries, problem.train.record_digests()).all() == (arm == "end-to-end")
        publishable = np.concatenate([problem.candidates(k).numpy() for k in range(10)])
        assert not np.isin(canaries, problem.train.record_digests()[publishable]).any()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"canaries": 400}, "400 canaries and as many controls are more than half of the"),
        (
            {"labels": "hard", "temperature": 1.0},
            "no expert takes part in making this set, so the arm 'expert' has nothing to check; use --arm end-to-end",
        ),
        ({"alpha": 0.001, "redraws": 500}, "500 redraws cannot show a p-value of"),
        (
            {"canaries": 112, "train_images": 400},
            "500 redraws cannot show a p-value of 0.001",
        ),  # enough non-members to test a rate beside the area: half a share for each
        ({"ipc": None}, "a budget is needed; use --ipc N"),
        ({"labels": "hard", "temperature": 1.0, "arm": "both", "defend": "top-k=1"}, "defenses act on soft labels, and this set has hard ones"),
        ({"defend": "prayer=1"}, "unknown defense 'prayer'"),
    ],
)
def test_what_cannot_be_audited_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=sentence):
        set_up("digits", AuditOptions(**{**OVERTRAINED, "shadows": 8, **changes}), Cache(tmp_path), Reporter())


def test_a_file_is_audited_for_copies_and_never_cleared_of_what_it_cannot_show(tmp_path: Path) -> None:
    made = DistillOptions(ipc="2", model="softmax", expert_epochs=2, expert_step=6, evaluate=False)
    dataset, _ = distill("digits", made, tmp_path, cache=Cache(tmp_path / "cache"))
    record = audit_file(tmp_path / FILE, AuditOptions(private="digits"), tmp_path)
    assert found(record, "published by design")["sentence"].startswith(f"The file discloses {len(dataset)} member images by design")
    assert found(record, "copies")["verdict"] == "clean"
    assert found(record, "exposure")["verdict"] == "not checked"
    assert record["exit_code"] == 4
    assert "not checked" in write_audit_page(record, tmp_path).read_text()
    record = audit_file(tmp_path / FILE, AuditOptions(private="digits", skip=("exposure", "membership")), tmp_path)
    assert record["exit_code"] == 0
    with pytest.raises(OptionError, match="name them with --private SOURCE"):
        audit_file(tmp_path / FILE, AuditOptions(), tmp_path)
