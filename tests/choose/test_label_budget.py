"""Spending a byte budget: every candidate keeps within it, and the planted best one wins on validation."""

from pathlib import Path

import pytest
import torch
from tests.small import Oracle, gaussians, problem

from limbeck.cache import Cache
from limbeck.choose.label_budget import Candidate, candidates_for, choose_labels
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.streams import Streams
from limbeck.types.recipe import Recipe

TRAIN = gaussians(12, classes=4)
PROBLEM = problem(TRAIN, (1,) * 4, streams=Streams(0), recipe=Recipe(lr=0.05, batch_size=16, epochs=8))


class Step(Oracle):
    """Right at step 8, and wrong in every image at all others."""

    def __init__(self, step: int) -> None:
        truth = torch.from_numpy(TRAIN.labels.copy())
        shift = 0 if step == 8 else 1
        super().__init__(TRAIN, 6.0 * torch.nn.functional.one_hot((truth + shift) % 4, 4), f"step {step}")
        self.images = TRAIN.read(range(len(TRAIN)))
        self.rows = torch.stack(list(self._rows.values()))

    def logits_of(self, images, pixels, plan):  # type: ignore[no-untyped-def]
        seen = images.read(range(len(images)))
        return torch.stack([self.rows[int((self.images == image).flatten(1).all(1).nonzero()[0, 0])] for image in seen])


def test_every_candidate_spends_what_it_may() -> None:
    found = candidates_for(PROBLEM, 1600, steps=[2, 8], temperatures=(1.0, 2.0), top_k=(None, 2, 4), precisions=("float16", "uint8"))
    assert found[0] == Candidate(LabelRule(kind="hard"), None, 6)
    # 4 classes kept of 4 is all of them, named once
    assert len(found) == 1 + 2 * 2 * 2 * 2
    for candidate in found:
        each = 64 + candidate.rule.bytes_per_image(4)
        assert candidate.ipc == 1600 // each // 4
        assert 4 * candidate.ipc * each <= 1600 < 4 * (candidate.ipc + 1) * each
    rich = candidates_for(PROBLEM, 10**6, steps=[8])
    assert {candidate.ipc for candidate in rich} == {12}


def test_a_budget_too_small_for_soft_labels_leaves_hard_ones() -> None:
    hard = 4 * 65
    assert [candidate.rule.kind for candidate in candidates_for(PROBLEM, hard, steps=[8])] == ["hard"]
    with pytest.raises(OptionError, match="200 bytes do not pay for one image of each of the 4 classes"):
        candidates_for(PROBLEM, 200, steps=[8])
    with pytest.raises(OptionError, match="top-k needs 1 <= k <= 4 classes, got k=5; use k=4 to keep all"):
        candidates_for(PROBLEM, 1600, steps=[8], top_k=(5,))
    with pytest.raises(OptionError, match="there is nothing to choose among"):
        candidates_for(PROBLEM, 1600, steps=[], hard=False)


def test_the_snapshot_that_is_right_wins(tmp_path: Path) -> None:
    found = candidates_for(PROBLEM, 1600, steps=[2, 8, 16], temperatures=(1.0,), precisions=("float16",), hard=False)
    choice = choose_labels(found, PROBLEM, Step, cache=Cache(tmp_path))
    assert found[choice.best].step == 8
    assert [len([trial for trial in choice.trials if trial.rung == rung]) for rung in range(3)] == [3, 2, 2]
    assert choice == choose_labels(found, PROBLEM, Step, cache=Cache(tmp_path))


def test_factors_are_numbers_where_they_can_be() -> None:
    soft = Candidate(LabelRule(temperature=2, top_k=3, precision="uint8"), 8, 5).factors(10)
    assert soft == {
        "labels": "soft",
        "expert step": 8,
        "temperature": 2,
        "entries": 3,
        "precision": "uint8",
        "images per class": 5,
    }
    assert Candidate(LabelRule(kind="hard"), None, 5).factors(10)["expert step"] is None
