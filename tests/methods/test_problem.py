import pytest
import torch
from tests.small import Oracle, as_shipped, gaussians, problem

from limbeck.data.splits import TestHandle
from limbeck.errors import OptionError

TABLE = gaussians((5, 1))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_method_cannot_be_given_the_test_split(split: str) -> None:
    with (
        as_shipped(),
        pytest.raises(OptionError, match=f"^a problem needs an image table as its {split} split, got TestHandle; the test split only measures$"),
    ):
        problem(**{"train": TABLE, "counts": (1, 1), split: TestHandle(TABLE)})


def test_a_class_too_small_for_its_budget_is_named() -> None:
    with pytest.raises(OptionError) as caught:
        problem(TABLE, (2, 2))
    assert str(caught.value) == "class 'band 1' has 1 training image, fewer than the 2 asked for; use --ipc 1, or --ipc proportional"
    with pytest.raises(OptionError, match="^class 'band 0' has 5 training images, fewer than the 6 asked for"):
        problem(TABLE, (6, 1))


def test_members_are_the_rows_of_a_class_in_table_order() -> None:
    task = problem(TABLE, (1, 1))
    for number in (0, 1):
        assert TABLE.labels[task.members(number).numpy()].tolist() == [number] * (5, 1)[number]
        assert task.members(number).tolist() == sorted(task.members(number).tolist())


def test_the_expert_is_asked_once() -> None:
    calls = []

    class Counting(Oracle):
        def logits(self, *arguments: object, **options: object) -> torch.Tensor:
            calls.append(1)
            return super().logits(*arguments, **options)  # type: ignore[arg-type]

    task = problem(TABLE, (1, 1)).with_expert(Counting(TABLE, torch.zeros(6, 2)))
    assert task.expert_logits is task.expert_logits
    assert calls == [1]
