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


@pytest.mark.parametrize("task", ["expert", "choose", "memory", "evalute"])
def test_only_tasks_of_an_arm_can_be_named(task: str) -> None:
    with pytest.raises(OptionError) as refused:
        graph_of(SMALL.replace('task = "expert-score"', f'task = "{task}"'))
    assert f"unknown task {task!r}; " in str(refused.value)
    assert "known: analyze, evaluate, expert-score, replay, set, at arms.expert.task (line 7 of study.toml)" in str(refused.value)
