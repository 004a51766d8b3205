from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians, subject

from limbeck.analyze.semantics import Semantics, average_precisions, chance_precision, corrected, precision_at
from limbeck.analyze.subject import NotApplicable, Subject
from limbeck.data.planted import PlantedTable
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable, Subset
from limbeck.progress import SILENT
from limbeck.types.measurement import Measurement

OPTIONS: dict[str, Any] = {
    "model": "mlp:width=16,depth=1",
    "seeds": 2,
    "steps": 40,
    "lr": 0.05,
    "test_images": None,
    "noise_points": 1,
    "shuffles": 100,
}


def planted_subject(folder: Path) -> Subject:
    """Of every class, two images as they are and one of the planted sub-population, which is inverted in train and test."""
    train, test = PlantedTable(gaussians(40, seed=1), "invert", 0.3), PlantedTable(gaussians(60, seed=5), "invert", 0.3)
    rows = [np.flatnonzero((train.labels == k) & (train.planted == odd))[:count] for k in (0, 1) for odd, count in ((False, 2), (True, 1))]
    picked = Subset(train, np.concatenate(rows))
    table = ArrayTable(picked.read(range(len(picked))), picked.labels, picked.classes)
    return subject(distilled(table), cache=folder, train=train, test=TestHandle(test))


def measure(given: Subject, **changes: Any) -> Measurement:
    return Semantics(Semantics.Options(**{**OPTIONS, **changes})).measure(given, SILENT)


def test_influence_finds_a_planted_sub_population(tmp_path: Path) -> None:
    made = measure(planted_subject(tmp_path), attributes=("planted", "symmetry"))
    precision, prevalence = made["average_precision"].values, made["prevalence"].values
    for number, (ordinary, odd) in enumerate((((0, 1), 2), ((3, 4), 5))):
        assert precision[0, odd] > 0.9  # the inverted image of the set finds the inverted test images
        assert precision[0, odd] > 2 * prevalence[0, number]
        assert max(precision[0, list(ordinary)]) < 0.7
    assert made["smallest_p_value"].values[0] < 0.05
    # an attribute that was not planted is not found, and the null is where random orders fall
    assert made["smallest_p_value"].values[1] > 0.05
    assert made["precision_recall"].values[0, 0].mean() > made["precision_recall"].values[0, 1].mean() + 0.2


def test_average_precision_and_its_curve_by_hand() -> None:
    has = np.array([True, False, True, False])
    assert average_precisions(has) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_at(has, (0.5, 1.0)).tolist() == pytest.approx([1, 2 / 3])
    assert np.isnan(average_precisions(np.zeros((1, 3), dtype=bool)))[0]


def test_the_chance_of_a_random_order_is_exact_and_above_the_prevalence() -> None:
    every = np.array([[place in ones for place in range(6)] for ones in combinations(range(6), 2)])
    assert float(average_precisions(every).mean()) == pytest.approx(chance_precision(2, 6))
    assert chance_precision(2, 6) > 2 / 6
    assert chance_precision(6, 6) == pytest.approx(1)
    assert chance_precision(1, 1) == 1


def test_the_smallest_of_many_p_values_is_no_smaller_by_chance() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        best = generator.random((10, 200))  # ten classes, nothing planted, of which the first column is what was seen
        rows = [(200 - np.searchsorted(np.sort(row), row, side="left")) / 200 for row in best]
        found.append(corrected(rows))
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.median(found) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(corrected([]))


def test_an_attribute_without_meaning_has_no_lift(tmp_path: Path) -> None:
    given = planted_subject(tmp_path)
    lifts = []
    for seed in range(12):
        file = tmp_path / f"random-{seed}.csv"
        drawn = np.random.default_rng(seed).random(given.test.size) < 0.3
        file.write_text("index,odd\n" + "".join(f"{row},{int(odd)}\n" for row, odd in enumerate(drawn)))
        lifts.append(measure(given, attributes=(f"csv:{file}:odd",), shuffles=20)["lift"].values[0])
    assert np.abs(np.mean(lifts, axis=0)).max() < 0.03  # against the prevalence it would be above 0.04


def test_an_attribute_without_positives_is_one_clear_sentence(tmp_path: Path) -> None:
    sentence = (
        r"the attribute 'red' has no positives among 50 test images that it is known of, and no class has 5 with and 5 without it; "
        r"use more test_images or another attribute"
    )
    with pytest.raises(NotApplicable, match=f"^{sentence}$"):
        measure(subject(cache=tmp_path), attributes=("red",))
    both = measure(subject(cache=tmp_path), attributes=("red", "brightness"))
    assert any(note == sentence for note in both.notes)
    assert np.isnan(both["p_value"].values[0]).all()
    assert np.isfinite(both["p_value"].values[1]).all()


def test_a_users_column_is_ranked(tmp_path: Path) -> None:
    given = planted_subject(tmp_path)
    planted = given.test_table()
    assert isinstance(planted, PlantedTable)
    file = tmp_path / "odd.csv"
    file.write_text("index,odd\n" + "".join(f"{row},{int(odd)}\n" for row, odd in enumerate(planted.planted)))
    made = measure(given, attributes=("planted", f"csv:{file}:odd"), test_images=80)
    both = made["average_precision"].values
    assert torch.equal(torch.from_numpy(both[0]), torch.from_numpy(both[1]))
