"""The visible table of task kinds. A kind is a class with `version`, `of_cell`, `run` and `price` (`limbeck.study.tasks.Kind`), and one line here."""

from limbeck.registry import Registry

KINDS = Registry(
    "task",
    {
        "expert": "limbeck.study.tasks:ExpertTask",
        "choose": "limbeck.study.tasks:ChooseTask",
        "set": "limbeck.study.tasks:SetTask",
        "evaluate": "limbeck.study.tasks:EvaluateTask",
        "expert-score": "limbeck.study.tasks:ExpertScoreTask",
        "analyze": "limbeck.study.analyze_task:AnalyzeTask",
        "memory": "limbeck.study.replay_task:MemoryTask",
        "replay": "limbeck.study.replay_task:ReplayTask",
    },
)
