from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians, subject

from limbeck.analyze.influence import Influence, checkpoint_steps, rank_correlations
from limbeck.analyze.leave_one_out import LeaveOneOutOptions, leave_one_out
from limbeck.analyze.subject import NotApplicable, Subject
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable, Subset
from limbeck.progress import SILENT
from limbeck.train.examples import Examples
from limbeck.train.fit import fit, predict
from limbeck.train.network import Network

OPTIONS = {"model": "mlp:width=4,depth=1", "seeds": 1, "steps": 20, "lr": 0.1, "test_images": 30, "noise_points": 2}


def losses_without(given: Subject, network: Network, point: int | None) -> torch.Tensor:
    """By a set from which the image was really taken out."""
    options = LeaveOneOutOptions(**OPTIONS)
    table = ArrayTable(given.dataset.images, given.dataset.owners.numpy(), given.dataset.classes)
    kept = [i for i in range(len(table)) if i != point]
    streams = given.streams["leave-one-out"]
    examples = Examples.of_table(Subset(table, kept), given.dataset.pixels)
    state = fit(network, network.init(streams[0]), examples, options.recipe.with_(batch_size=len(kept)), streams, given.plan).network
    test = given.test_table(30)
    logits = predict(network, state, test, given.dataset.pixels, given.plan).double()
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.array(test.labels)), reduction="none")


def test_exact_influence_is_what_taking_the_image_out_does(tmp_path: Path) -> None:
    given = subject(cache=tmp_path)
    exact = leave_one_out(given, LeaveOneOutOptions(**OPTIONS), SILENT)
    network = given.network_of(OPTIONS["model"])  # type: ignore[arg-type]
    whole = losses_without(given, network, None)
    for point in (0, 4):
        wanted = losses_without(given, network, point) - whole
        torch.testing.assert_close(exact.influence[0, point], wanted, rtol=1e-3, atol=1e-5)
    assert float(exact.influence.abs().max()) > 1e-2
    assert exact.noise < 1e-2
    # rows are those of the whole test table
    assert torch.equal(given.test_table().read(exact.rows), exact.test.read(range(30)))


def test_a_killed_run_goes_on_and_another_analysis_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = subject(cache=tmp_path)
    first = leave_one_out(given, LeaveOneOutOptions(**OPTIONS), SILENT)
    monkeypatch.setattr("limbeck.analyze.leave_one_out.fit_many", lambda *args, **rest: pytest.fail("trained again"))
    again = leave_one_out(given, Influence.Options(**OPTIONS), SILENT)
    assert torch.equal(first.influence, again.influence)


def test_some_points_and_stacks_give_the_same_influence(tmp_path: Path) -> None:
    every = leave_one_out(subject(cache=tmp_path), LeaveOneOutOptions(**OPTIONS), SILENT)
    plan = subject(cache=tmp_path).plan.model_copy(update={"models": 4})
    options = LeaveOneOutOptions(**{**OPTIONS, "points": 3})
    some = leave_one_out(subject(cache=tmp_path, plan=plan), options, SILENT)
    assert len(some.points) == 3
    torch.testing.assert_close(some.influence[0], every.influence[0, some.points], rtol=1e-3, atol=1e-5)


def test_estimates_find_the_order_of_influences_and_cheap_settings_say_that_they_failed(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **OPTIONS,
        "model": "softmax",
        "steps": 100,
        "lr": 0.02,
        "momentum": 0.5,
        "seeds": 2,
        "test_images": None,
        "cg_tolerance": 1e-4,
    }
    made = Influence(Influence.Options(**options)).measure(subject(cache=tmp_path), SILENT)
    correlation = dict(zip(made.axes["estimate"], made["rank_correlation_mean"].values, strict=True))
    assert correlation["TracIn"] > 0.8  # a convex loss in small steps
    assert correlation["influence functions"] > 0.5
    assert made.converged
    # of two classes the class says much, and the estimates say more; within a class it says nothing
    assert 0 < correlation["same class"] < correlation["TracIn"]
    within = dict(zip(made.axes["estimate"], made["rank_correlation_within"].values, strict=True))
    assert np.isnan(within["same class"])
    assert within["TracIn"] > 0.5
    assert made["own_class_influence"].values[0] > 0 > made["own_class_influence"].values[1]
    hasty = Influence(Influence.Options(**{**options, "cg_steps": 1})).measure(subject(cache=tmp_path), SILENT)
    assert not hasty.converged
    assert any(note.startswith("conjugate gradients stopped after 1 steps with a relative residual of") for note in hasty.notes)


def test_an_image_that_is_in_the_set_is_what_it_helps_most(tmp_path: Path) -> None:
    """An image of the set that is also a test image, under a label that its neighbors contradict."""
    table, test = gaussians(3, seed=7), gaussians(10, seed=5)
    images, labels = test.images.clone(), test.labels.copy()
    images[4], labels[4] = table.images[0], 1 - table.labels[0]
    set_labels = table.labels.copy()
    set_labels[0] = labels[4]
    odd = distilled(ArrayTable(table.images, set_labels, table.classes))
    given = subject(odd, cache=tmp_path, test=TestHandle(ArrayTable(images, labels, table.classes)))
    made = Influence(Influence.Options(**{**OPTIONS, "model": "mlp:width=16,depth=1", "steps": 150, "test_images": None, "shown": 1})).measure(
        given, SILENT
    )
    assert made["top_images"].values[0, 0] == 4


def test_divergence_is_reported_not_hidden(tmp_path: Path) -> None:
    made = Influence(Influence.Options(**{**OPTIONS, "model": "softmax", "lr": 3e38})).measure(subject(cache=tmp_path), SILENT)
    assert not made.converged
    assert any("diverged" in note for note in made.notes)


def test_networks_with_batch_statistics_are_refused(tmp_path: Path) -> None:
    options = LeaveOneOutOptions(**{**OPTIONS, "model": "convnet:depth=1,width=8,norm=batch"})
    with pytest.raises(
        NotApplicable, match=r"^leaving out an image needs a network without batch statistics, and convnet.* has them; use one with norm="
    ):
        leave_one_out(subject(cache=tmp_path), options, SILENT)


def test_rank_correlation_knows_ties_and_what_it_cannot_say() -> None:
    first = torch.tensor([[1.0, 2, 3, 4], [1, 1, 2, 3], [1, 1, 1, 1], [1, 2, 3, torch.nan]])
    second = torch.tensor([[10.0, 30, 20, 40], [1, 2, 3, 3], [1, 2, 3, 4], [1, 2, 3, 4]])
    found = rank_correlations(first, second)
    assert found[0] == pytest.approx(0.8)
    assert found[1] == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1])
    assert np.isnan(found[2:]).all()


def test_checkpoints_start_equal_stretches() -> None:
    assert checkpoint_steps(300, 10) == [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]
    assert checkpoint_steps(3, 10) == [0, 1, 2]
