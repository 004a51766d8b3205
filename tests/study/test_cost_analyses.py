"""From how many networks on a set pays, against sums by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.study.test_label_analyses import HEAD, arm

from limbeck.cache import Cache
from limbeck.study.artefacts import Artefacts
from limbeck.study.cost_analyses import BreakEvenOptions, break_even
from limbeck.study.spec import Study
from limbeck.study.tasks import flops_of
from limbeck.study.view import NotMeasured, Selector, View
from limbeck.types.recipe import Recipe

NETS = ["softmax", "mlp:width=16,depth=1"]
OPTIONS = BreakEvenOptions(title="t", small=Selector(arm="small"), full=Selector(arm="full"))


def task(kind: str, key: str, inputs: dict[str, list[str]], **settings: Any) -> dict[str, Any]:
    return {"kind": kind, "key": key, "inputs": inputs, "settings": settings, "measures": {"accuracy": [0.5]}}


def steps(count: int) -> dict[str, Any]:
    return Recipe(steps=count, batch_size=10).model_dump(mode="json")


def view_of(full_steps: int) -> View:
    """Students of 5 steps on one set of an expert of 40 steps, which all of them share, and students of `full_steps` on all data; two of each."""
    body = arm("small", '["arch"]', ipc="1", model='"{arch}"') + arm("full", '["arch"]', ipc='"all"', model='"{arch}"', labels='{ kind = "hard" }')
    study = Study.parse(HEAD.replace('cost = "none"', f'cost = "none"\naxes = {{ arch = {NETS} }}') + body)
    cells = study.cells("smoke")
    method = {"method": "random-real", "options": {}, "steps": 0, "model": "softmax"}
    rows = {
        "expert": task("expert", "expert", {}, recipe=steps(40), model="softmax"),
        "set": task("set", "set", {"experts": ["expert"]}, ipc=1, **method),
        "data": task("set", "data", {}, ipc="all", **method),
    }
    for number, cell in enumerate(cells):
        made, count = ("set", 5) if cell.arm == "small" else ("data", full_steps)
        student = {"recipe": steps(count), "images": 1000, "students": 2, "model": cell.making.model}
        rows[str(number)] = task("evaluate", str(number), {"set": [made]}, **student)
    return View(study, "smoke", cells, [str(number) for number in range(len(cells))], rows)


def test_break_even_is_what_making_costs_over_what_a_network_saves() -> None:
    view = view_of(25)
    facts = view.study.scale("smoke").data
    flops = np.array([flops_of(net, facts) for net in NETS])
    measurement, (plot,) = break_even(view, OPTIONS, Artefacts(Cache(Path("unused"))))
    small, full = flops * (3 * 5 * 10 + facts.test), flops * (3 * 25 * 10 + facts.test)
    making = flops[0] * (3 * 40 * 10 + facts.classes)  # the expert once, and a label for every image of the set
    assert measurement["cost"].values == pytest.approx(np.stack([small, full], 1))
    assert float(measurement["making"].values) == pytest.approx(making)
    assert float(measurement["break even"].values) == pytest.approx(making / (full - small).mean())
    assert float(measurement["times cheaper"].values) == pytest.approx(full.sum() / (making + small.sum()))
    assert plot.quantity == "cost"


def test_a_set_that_saves_nothing_never_pays() -> None:
    measurement, _ = break_even(view_of(5), OPTIONS, Artefacts(Cache(Path("unused"))))
    assert math.isinf(float(measurement["break even"].values))


def test_an_unfinished_ancestor_is_waited_for() -> None:
    view = view_of(25)
    del view.rows["expert"]  # type: ignore[attr-defined]
    with pytest.raises(NotMeasured, match="expert"):
        break_even(view, OPTIONS, Artefacts(Cache(Path("unused"))))
