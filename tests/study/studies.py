"""A study of seconds: softmax regression on digits, one expert of two epochs."""

from typing import Any

SMALL = """name = "small"
title = "A small study"
question = "Does it run?"
paper = "none"

[arms.expert]
task = "expert-score"
over = ["epoch"]
at = "{epoch}"

[arms.soft]
over = ["ipc", "epoch"]
ipc = "{ipc}"
at = "{epoch}"
labels = { kind = "soft" }

[arms.hard]
over = ["ipc"]
ipc = "{ipc}"
labels = { kind = "hard" }

[[claims]]
id = "more-is-better"
sentence = "More images are better"
expected = "of course"
check = { kind = "greater", left = { arm = "hard", ipc = 4 }, right = { arm = "hard", ipc = 1 } }

[[claims]]
id = "trained"
sentence = "Experts learn"
expected = "yes"
check = { kind = "threshold", of = { arm = "expert", epoch = 2 }, above = 0.5 }

[[analyses]]
name = "curves"
id = "students"
options = { title = "Students", of = { arm = "soft" }, x = "epoch", color = "ipc" }

[scales.smoke.experts.main]
epochs = 2
recipe = { lr = 0.05 }

[scales.smoke]
source = "digits"
data = { shape = [1, 8, 8], classes = 10, train = 1295, test = 359 }
model = "softmax"
protocol = "dc"
recipe = { steps = 20, lr = 0.1 }
students = 2
axes = { epoch = [1, 2], ipc = [1, 4] }
cost = "seconds"
"""


def small(students: int) -> str:
    """The study with another number of students."""
    return SMALL.replace("students = 2", f"students = {students}")


#: A row of a finished task.
ROW: dict[str, Any] = {
    "key": "a",
    "kind": "set",
    "settings": {},
    "inputs": {"experts": ["b"]},
    "measures": {},
    "digests": {},
    "files": [],
    "facts": {},
    "versions": {},
    "machine": {},
    "seconds": 1.0,
    "finished": 2.0,
}
