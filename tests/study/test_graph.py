"""What an arm cannot ask for is one sentence with its place, before the data are opened."""

import pytest
from tests.study.studies import SMALL

from limbeck.errors import OptionError
from limbeck.study.graph import Builder, DataKey, Graph
from limbeck.study.spec import Study


def graph_of(content: str) -> Graph:
    return Builder(Study.parse(content), "smoke", DataKey.unseen("normalize"), device="cpu", threads=1).graph()


@pytest.mark.parametrize("task", ["evaluate", "set", "analyze"])
@pytest.mark.parametrize("ipc", [0, -1])
def test_a_set_without_images_is_refused(task: str, ipc: int) -> None:
    arm = f'[arms.none]\ntask = "{task}"\nipc = {ipc}\nlabels = {{ kind = "hard" }}\nanalyses = {{ recognition = {{}} }}\n'
    with pytest.raises(OptionError) as refused:
        graph_of(SMALL + arm)
    assert str(refused.value).startswith(f"a set holds at least 1 image of each class, or 'all', got ipc = {ipc}; use ipc = 1 or more")
    assert f"at arms.none.ipc (line {len(SMALL.splitlines()) + 3} of study.toml) (scale 'smoke', cell none)" in str(refused.value)


def test_a_transform_that_does_not_suit_the_classes_is_refused() -> None:
    with pytest.raises(OptionError) as refused:
        graph_of(SMALL.replace('labels = { kind = "soft" }', 'labels = { kind = "soft" }\ntransforms = ["harden", "swap:rank=99"]'))
    assert str(refused.value) == (
        "a swap needs a rank of 1 to 10 classes, got 99; use rank=9 for the last but one, "
        "at arms.soft.transforms (line 16 of study.toml) (scale 'smoke', cell soft: ipc=1, epoch=1)"
    )


@pytest.mark.parametrize("task", ["expert", "choose", "memory", "evalute"])
def test_only_tasks_of_an_arm_can_be_named(task: str) -> None:
    with pytest.raises(OptionError) as refused:
        graph_of(SMALL.replace('task = "expert-score"', f'task = "{task}"'))
    assert f"unknown task {task!r}; " in str(refused.value)
    assert "known: analyze, evaluate, expert-score, replay, set, at arms.expert.task (line 7 of study.toml)" in str(refused.value)
