"""The visible tables of task kinds. A kind is a class with `version`, `run` and `price` (`limbeck.study.tasks.Kind`), and one line here.
Those that an arm may name also have `of_cell` (`limbeck.study.tasks.CellKind`); the others are added by them, as what they build on."""

from limbeck.registry import Registry

_OF_AN_ARM = {
    "set": "limbeck.study.tasks:SetTask",
    "evaluate": "limbeck.study.tasks:EvaluateTask",
    "expert-score": "limbeck.study.tasks:ExpertScoreTask",
    "analyze": "limbeck.study.analyze_task:AnalyzeTask",
    "replay": "limbeck.study.replay_task:ReplayTask",
}
ARM_KINDS = Registry("task", _OF_AN_ARM)
KINDS = Registry(
    "task",
    {
        "expert": "limbeck.study.tasks:ExpertTask",
        "choose": "limbeck.study.tasks:ChooseTask",
        "memory": "limbeck.study.replay_task:MemoryTask",
        **_OF_AN_ARM,
    },
)
