import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import PLAN, as_shipped, distilled, gaussians, network

from limbeck.cache import Cache
from limbeck.choose import snapshot as module
from limbeck.choose.snapshot import best_learning_rate, successive_halving, trials_as_dicts
from limbeck.data.splits import TestHandle
from limbeck.data.tables import Subset
from limbeck.errors import OptionError
from limbeck.streams import Streams
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

TRAIN, VALIDATION = gaussians(8), gaussians(40, seed=1)
RECIPE = Recipe(lr=0.05, batch_size=16, epochs=8)
STEPS = [1, 2, 4, 8, 16, 32]
BEST = 8


def make(step: int) -> DistilledDataset:
    """Labels that are right at the planted step alone; elsewhere they mix in the wrong class, and the more the farther away."""
    right = torch.nn.functional.one_hot(torch.from_numpy(TRAIN.labels.copy()), 2).float()
    wrong = 0.0 if step == BEST else 0.55 + 0.05 * abs(np.log2(step / BEST))
    return distilled(TRAIN, Labels.encode(right * (1 - wrong) + right.flip(1) * wrong), provenance={"step": step})


def choose(root: Path, candidates: list[int] = STEPS, seed: int = 0, **changes: object):  # type: ignore[no-untyped-def]
    options = {"streams": Streams(seed), "plan": PLAN, "cache": Cache(root), **changes}
    return successive_halving(candidates, make, network(), options.pop("recipe", RECIPE), options.pop("validation", VALIDATION), **options)  # type: ignore[arg-type]


def test_the_planted_snapshot_wins(tmp_path: Path) -> None:
    for seed in range(3):
        choice = choose(tmp_path, seed=seed)
        assert choice.best == BEST
        assert choice.validation_images == 80
        final = [trial for trial in choice.trials if trial.rung == 2]
        assert max(final, key=lambda trial: trial.mean).candidate == BEST


def test_each_rung_keeps_the_best_third_and_trains_longer(tmp_path: Path) -> None:
    choice = choose(tmp_path)
    rungs = [[trial for trial in choice.trials if trial.rung == rung] for rung in range(3)]
    assert [len(rung) for rung in rungs] == [6, 2, 2]
    assert [rung[0].fraction for rung in rungs] == [0.25, 0.5, 1.0]
    assert [len(trial.accuracies) for rung in rungs for trial in rung] == [1] * 8 + [2] * 2
    ranked = sorted(rungs[0], key=lambda trial: (-trial.mean, trial.candidate))
    assert {trial.candidate for trial in rungs[1]} == {trial.candidate for trial in ranked[:2]}
    assert [row["mean"] for row in trials_as_dicts(choice)] == [trial.mean for trial in choice.trials]
    json.dumps(trials_as_dicts(choice))


def test_rungs_shorten_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int | None, int | None]] = []

    def record(asked, net, recipe, *rest):  # type: ignore[no-untyped-def]
        lengths.extend([(recipe.epochs, recipe.steps)] * len(asked))
        return [0.5] * len(asked)

    monkeypatch.setattr(module, "_judge", record)
    assert choose(tmp_path, [4, 2]).best == 2  # ties go to the earlier step
    assert sorted(set(lengths)) == [(2, None), (4, None), (8, None)]
    lengths.clear()
    choose(tmp_path, [1, 2], recipe=Recipe(steps=3))
    assert [steps for _, steps in lengths] == [1, 1, 2, 2, 3, 3, 3, 3]


def test_candidates_share_student_seeds_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, object, tuple[str, ...]]] = []

    def record(asked, net, recipe, judges, plan, cache, tick):  # type: ignore[no-untyped-def]
        seen.extend((each.dataset.provenance["step"], each.streams, judges.digest) for each in asked)
        return [0.5] * len(asked)

    monkeypatch.setattr(module, "_judge", record)
    choose(tmp_path, [1, 2], rungs=((1.0, 3),))
    assert [streams for step, streams, _ in seen if step == 1] == [streams for step, streams, _ in seen if step == 2]
    assert len({streams for _, streams, _ in seen}) == 3
    assert len({judges for *_, judges in seen}) == 1


def test_equal_candidates_score_equally(tmp_path: Path) -> None:
    choice = successive_halving(
        [1, 2], lambda step: make(BEST), network(), RECIPE, VALIDATION, streams=Streams(0), plan=PLAN, cache=Cache(tmp_path), rungs=((1.0, 2),)
    )
    first, second = choice.trials
    assert first.accuracies == second.accuracies
    assert choice.best == 1


def test_a_single_candidate_is_taken_without_training(tmp_path: Path) -> None:
    with as_shipped():
        choice = successive_halving([5], None, network(), RECIPE, Subset(VALIDATION, []), streams=Streams(0), plan=PLAN, cache=Cache(tmp_path))  # type: ignore[arg-type]
    assert (choice.best, choice.trials) == (5, ())


def test_a_second_choice_trains_nothing_and_damaged_entries_are_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_students", None)
        assert choose(tmp_path) == first
    for content, path in zip(["{", "[]", "null", "{}", '{"accuracy": null}'], sorted((tmp_path / "trials").iterdir()), strict=False):
        path.write_text(content)
    assert choose(tmp_path) == first


def test_what_cannot_judge_is_refused(tmp_path: Path) -> None:
    with as_shipped(), pytest.raises(OptionError, match="^choosing needs the validation split, got the test handle; the test split only measures$"):
        choose(tmp_path, validation=TestHandle(VALIDATION))
    with pytest.raises(OptionError, match="^choosing the expert's snapshot needs a validation split, got an empty one; use --validation 0.1, or "):
        choose(tmp_path, validation=Subset(VALIDATION, []))
    with pytest.raises(OptionError, match="^choosing the expert's snapshot needs at least one candidate, got none; "):
        choose(tmp_path, [])


def test_many_validation_images_are_thinned_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VALIDATION_IMAGES", 40)
    large = gaussians((300, 100), seed=2)
    chosen = module._stratified(large, Streams(0))
    assert len(set(chosen.tolist())) == 40
    assert np.abs(np.bincount(large.labels[chosen]) - [30, 10]).max() <= 1
    assert np.array_equal(chosen, module._stratified(large, Streams(0)))
    assert not np.array_equal(chosen, module._stratified(large, Streams(1)))
    assert choose(tmp_path, [1, 8], validation=large).validation_images == 40


def rates(root: Path, among: list[float], **changes: object) -> tuple[float, dict[float, float]]:
    options = {"streams": Streams(0), "plan": PLAN, "cache": Cache(root), **changes}
    return best_learning_rate(among, make(BEST), network(), RECIPE, options.pop("validation", VALIDATION), **options)  # type: ignore[arg-type]


def test_the_learning_rate_that_learns_wins(tmp_path: Path) -> None:
    best, means = rates(tmp_path, [1e-7, 0.05, 1e-8])
    assert best == 0.05
    assert means[0.05] > 0.9 > max(means[1e-7], means[1e-8])
    assert list(means) == [1e-7, 0.05, 1e-8]


def test_the_smaller_of_equally_good_rates_wins_and_a_second_search_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rates(tmp_path, [1e-12, 1e-13])
    assert first[0] == 1e-13
    monkeypatch.setattr(module, "train_students", None)
    assert rates(tmp_path, [1e-12, 1e-13]) == first


@pytest.mark.parametrize("validation", [TestHandle(VALIDATION), Subset(VALIDATION, [])])
def test_a_rate_is_not_chosen_on_nothing_or_on_test(tmp_path: Path, validation: object) -> None:
    with as_shipped(), pytest.raises(OptionError, match="^choosing a learning rate needs a non-empty validation split; use --validation 0.1$"):
        rates(tmp_path, [0.1], validation=validation)
