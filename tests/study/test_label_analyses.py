"""Analyses of label studies on numbers that are known: planted laws, planted distances, planted spreads."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians

from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.study import label_analyses as module
from limbeck.study.artefacts import Artefacts
from limbeck.study.spec import Cell, Study
from limbeck.study.view import Selector, View
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels

HEAD = """name = "planted"
title = "Planted numbers"
question = "?"
paper = "none"

[scales.smoke]
source = "digits"
data = { shape = [1, 8, 8], classes = 4, train = 1295, test = 359 }
model = "softmax"
protocol = "dc"
students = 2
cost = "none"

[scales.smoke.experts.main]
epochs = 30

"""


class Planted(Artefacts):
    """A view whose cells measure what a function says, and artefacts that hold what functions make."""

    def __init__(
        self,
        body: str,
        axes: str,
        measure: Callable[[Cell], Any],
        dataset: Callable[[Cell], DistilledDataset] | None = None,
        scores: Callable[[Cell], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(Cache(Path("unused")))
        study = Study.parse(HEAD.replace('cost = "none"', f'cost = "none"\naxes = {axes}') + body)
        cells = study.cells("smoke")
        keys = [str(number) for number in range(len(cells))]
        rows: dict[str, dict[str, Any]] = {}
        for key, cell in zip(keys, cells, strict=True):
            found = measure(cell)
            rows[key] = {"kind": "evaluate", "key": key, "measures": found if isinstance(found, Mapping) else {"accuracy": found}}
        self.view = View(study, "smoke", cells, keys, rows)
        self._cells, self._dataset, self._scores = dict(zip(keys, cells, strict=True)), dataset, scores

    def dataset(self, row: Mapping[str, Any]) -> DistilledDataset:
        assert self._dataset is not None
        return self._dataset(self._cells[row["key"]])

    def scores(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        assert self._scores is not None
        return {"class_accuracy": self._scores(self._cells[row["key"]])}

    def measure(self, analysis: Callable[..., Any], options: Any) -> Any:
        return analysis(self.view, options, self)


def arm(name: str, over: str, **keys: str) -> str:
    return f"[arms.{name}]\nover = {over}\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + "\n"


def rows(*numbers: list[float]) -> DistilledDataset:
    """One image for each label row."""
    table = gaussians(1, classes=4)
    labels = torch.tensor(numbers)
    made = distilled(table)
    return DistilledDataset(**{**vars(made), "labels": Labels.encode(labels, sums_to_one=False)})


def test_relative_performance_and_what_is_lost() -> None:
    body = arm("soft", '["ipc"]', ipc='"{ipc}"') + arm("swapped", '["ipc", "rank"]', ipc='"{ipc}"', transforms='["swap:rank={rank}"]')
    kept = {(1, 1): 0.2, (1, 3): 0.8, (10, 1): 0.6, (10, 3): 1.0}

    def measure(cell: Cell) -> list[float]:
        share = kept[cell.coordinates["ipc"], cell.coordinates["rank"]] if cell.arm == "swapped" else 1.0
        return [0.4 * share, 0.5 * share]

    planted = Planted(body, "{ ipc = [1, 10], rank = [1, 3] }", measure)
    options = module.RelativeOptions(title="t", of=Selector(arm="swapped"), baseline=Selector(arm="soft"), x="rank", color="ipc")
    measurement, plots = planted.measure(module.relative, options)
    assert measurement["relative"].values == pytest.approx(np.array([[0.2, 0.8], [0.6, 1.0]]))
    assert measurement["loss ipc 1"].values == pytest.approx(0.5)
    assert measurement["loss ipc 10"].values == pytest.approx(0.2)
    assert measurement["more lost at the first"].values == pytest.approx(0.3)
    assert measurement["loss ipc 1 past rank 1"].values == pytest.approx(0.2)
    assert measurement["loss ipc 10 past rank 1"].values == pytest.approx(0.0)
    assert measurement["more lost at the first past rank 1"].values == pytest.approx(0.2)
    assert plots[0].color == "ipc"


@pytest.mark.parametrize(("draws", "students", "truth"), [(1, 5, 0.0), (1, 5, 0.5), (4, 2, 0.0)])
def test_a_loss_knows_that_its_baseline_was_measured_too(draws: int, students: int, truth: float) -> None:
    rng, covered, repeats = np.random.default_rng(0), np.zeros(2), 400
    for _ in range(repeats):
        losses = []
        for _color in range(2):
            base, parts = 0.3 + rng.normal(0, 0.01, (draws, 1, students)), 0.3 * (1 - truth) + rng.normal(0, 0.01, (12, draws, 1, students))
            losses.append(module._losses(parts.mean(0), base))
            assert losses[-1].mean() == pytest.approx(1 - parts.mean() / base.mean())
        found, gap = module.nested_interval(losses[0]), module.difference(losses[0], losses[1])
        covered += [found.low <= truth <= found.high, gap.low <= 0 <= gap.high]
    # of 400 intervals at 95 %, fewer than 366 or more than 392 cover with probability below 0.5 %; where draws do not differ, those of their means are too wide
    assert ((covered >= 366) & (covered <= (392 if draws == 1 else 400))).all(), covered


def test_a_relative_measure_needs_paired_repeats() -> None:
    body = arm("soft", '["ipc"]', ipc='"{ipc}"') + arm("swapped", '["ipc", "draw"]', ipc='"{ipc}"', draw='"{draw}"')
    planted = Planted(body, "{ ipc = [1, 10], draw = [0, 1] }", lambda cell: [0.4, 0.5])
    options = module.RelativeOptions(title="t", of=Selector(arm="swapped"), baseline=Selector(arm="soft"), x="ipc", color="ipc")
    with pytest.raises(OptionError, match="swapped and its baseline soft need the same draws, experts and students at ipc 1; cross both arms over"):
        planted.measure(module.relative, options)


def test_the_scaling_law_comes_back_from_a_study() -> None:
    body = arm("hard", '["ipc"]', ipc='"{ipc}"', labels='{ kind = "hard" }') + arm("soft", '["ipc", "epoch"]', ipc='"{ipc}"', at='"{epoch}"')

    def measure(cell: Cell) -> list[float]:
        seen = cell.coordinates["ipc"] * (6.04 if cell.arm == "soft" else 1)
        return [(seen / 29.9) ** 0.077 - 0.7 - (0.2 if cell.coordinates.get("epoch") == 30 else 0)] * 2

    planted = Planted(body, "{ ipc = [1, 3, 10, 30], epoch = [1, 30] }", measure)
    soft = (Selector(arm="soft", epoch=1, ipc=[1, 3]), Selector(arm="soft", epoch=1, ipc=[10, 30]))
    measurement, _ = planted.measure(module.scaling, module.ScalingOptions(title="t", hard=Selector(arm="hard"), soft=soft, samples=20))
    assert measurement["saving"].values == pytest.approx(6.04, rel=1e-4)
    assert measurement["exponent"].values == pytest.approx(0.077, rel=1e-3)
    assert measurement["fitted"].values == pytest.approx(measurement["measured"].values, abs=1e-8)
    # read off the curve by interpolation: exact only where the law is nearly straight in log n
    assert measurement["saving at"].values[:2] == pytest.approx([6.04, 6.04], rel=0.03)
    assert np.isnan(measurement["saving at"].values[2:]).all()


@pytest.mark.parametrize(
    ("draws", "students", "covers"),
    [(2, 1, "image draws and students"), (1, 2, "students"), (1, 1, "nothing repeated"), (3, 2, "image draws and students")],
)
def test_the_law_says_what_its_intervals_cover(draws: int, students: int, covers: str) -> None:
    body = "".join(
        arm(name, '["ipc", "draw"]', ipc='"{ipc}"', draw='"{draw}"', labels=f'{{ kind = "{name}" }}', students=str(students))
        for name in ("hard", "soft")
    )

    def measure(cell: Cell) -> list[float]:
        # images nest and both kinds of label share them: a good draw is good everywhere, which changes neither saving nor exponent
        seen = cell.coordinates["ipc"] * (6.04 if cell.arm == "soft" else 1)
        return [(seen / 29.9) ** 0.077 - 0.7 + 0.05 * cell.coordinates["draw"] + 0.01 * student for student in range(students)]

    planted = Planted(body, f"{{ ipc = [1, 3, 10, 30], draw = {list(range(draws))} }}", measure)
    measurement, _ = planted.measure(
        module.scaling, module.ScalingOptions(title="t", hard=Selector(arm="hard"), soft=(Selector(arm="soft"),), samples=100)
    )
    for name in ("saving", "exponent"):
        assert measurement[name].covers == covers
        assert np.isfinite(measurement[name].low) == (covers != "nothing repeated")
    if covers != "nothing repeated":
        assert (measurement["saving"].low, measurement["saving"].high) == pytest.approx((6.04, 6.04), rel=0.01)


def test_the_front_counts_what_nothing_beats() -> None:
    body = arm("hard", '["ipc"]', ipc='"{ipc}"', labels='{ kind = "hard" }') + arm("soft", '["ipc"]', ipc='"{ipc}"')
    worth = {("hard", 1): 0.1, ("hard", 10): 0.5, ("soft", 1): 0.3, ("soft", 10): 0.45}
    price = {("hard", 1): 10, ("hard", 10): 100, ("soft", 1): 20, ("soft", 10): 200}

    def measure(cell: Cell) -> dict[str, Any]:
        key = cell.arm, cell.coordinates["ipc"]
        return {"accuracy": [worth[key]] * 2, "bytes": price[key]}

    planted = Planted(body, "{ ipc = [1, 10] }", measure)
    measurement, plots = planted.measure(module.front, module.FrontOptions(title="t", of=(Selector(arm="hard"), Selector(arm="soft"))))
    # three settings are on the front, two of them hard, and nothing varies
    for name, share in (("hard", 2 / 3), ("soft", 1 / 3)):
        found = measurement[f"share of {name} on the front"]
        assert (found.values, found.low, found.high) == pytest.approx((share, share, share))
        assert found.covers == "students"
    assert measurement["place"].values[0] == pytest.approx([1, 0.1])
    assert plots[0].kind == "scatter"


@pytest.mark.parametrize(("gap", "decided"), [(0.2, True), (0.002, False)])
def test_shares_of_the_front_are_as_sure_as_the_draws_allow(gap: float, decided: bool) -> None:
    body = "".join(
        arm(name, '["ipc", "draw"]', ipc='"{ipc}"', draw='"{draw}"', labels=f'{{ kind = "{name}" }}', students="1") for name in ("hard", "soft")
    )
    rng = np.random.default_rng(0)

    def measure(cell: Cell) -> dict[str, Any]:
        ipc = cell.coordinates["ipc"]
        return {"accuracy": [0.1 * np.log(ipc) + gap * (cell.arm == "soft") + rng.normal(0, 0.01)], "images": ipc}

    planted = Planted(body, "{ ipc = [1, 3, 10, 30], draw = [0, 1, 2, 3] }", measure)
    options = module.FrontOptions(title="t", of=(Selector(arm="hard"), Selector(arm="soft")), cost="images")
    found = planted.measure(module.front, options)[0]["share of hard on the front"]
    assert found.covers == "image draws and students"
    assert bool(found.high < 0.5) == decided
    assert found.low <= found.values <= found.high
    alone = Planted(body, "{ ipc = [1, 3, 10, 30], draw = [0] }", measure).measure(module.front, options)[0]["share of hard on the front"]
    assert np.isnan(alone.low)
    assert alone.covers == "nothing repeated"


def test_accuracy_on_removed_classes() -> None:
    body = arm("control", '["ipc"]', ipc='"{ipc}"') + arm(
        "no-label", '["ipc", "removed"]', ipc='"{ipc}"', transforms='["remove-label:classes={removed}"]'
    )

    def scores(cell: Cell) -> torch.Tensor:
        found = torch.tensor([[0.5, 0.6, 0.7, 0.8]]).repeat(2, 1)
        if cell.arm == "no-label":
            found[:, int(cell.coordinates["removed"])] = 0.1
        return found

    planted = Planted(body, "{ ipc = [1], removed = [3, 0, 2] }", lambda cell: [0.0, 0.0], scores=scores)
    options = module.RemovedClassOptions(title="t", control=Selector(arm="control"), treatments=(Selector(arm="no-label"),))
    measurement, _ = planted.measure(module.removed_class, options)
    assert measurement.axes["class"] == ("class 0", "class 2", "class 3")
    assert measurement["accuracy"].low == pytest.approx(measurement["accuracy"].values)
    assert measurement["accuracy"].covers == "students"
    assert measurement["accuracy"].values[0] == pytest.approx(np.array([[0.5, 0.7, 0.8], [0.1, 0.1, 0.1]]))
    assert measurement["mean no-label ipc 1"].values == pytest.approx(0.1)
    assert measurement["no-label minus control ipc 1"].values == pytest.approx(-1.7 / 3)


def test_learned_labels_are_nearest_to_the_planted_snapshot() -> None:
    body = (
        arm("learned", '["ipc"]', task='"set"', ipc='"{ipc}"')
        + arm("ensemble", '["ipc", "epoch"]', task='"set"', ipc='"{ipc}"', at='"{epoch}"')
        + arm("singles", '["ipc", "epoch", "expert"]', task='"set"', ipc='"{ipc}"', at='"{epoch}"', experts='["{expert}"]')
    )
    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    end = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).softmax(1)

    def dataset(cell: Cell) -> DistilledDataset:
        if cell.arm == "learned":
            return rows(*(3 * ((start + end) / 2)).tolist())  # free rows: only their proportions count
        share = {1: 0.0, 3: 0.5, 30: 1.0}[cell.coordinates["epoch"]]
        mixed = (1 - share) * start + share * end
        return rows(*(mixed.roll(int(cell.coordinates.get("expert", 0)), 1)).tolist())

    planted = Planted(body, "{ ipc = [1], epoch = [1, 3, 30], expert = [0, 1] }", lambda cell: {"images": 4}, dataset)
    options = module.LabelDistanceOptions(title="t", learned=Selector(arm="learned"), expert=Selector(arm="ensemble"), pair=Selector(arm="singles"))
    measurement, _ = planted.measure(module.label_distance, options)
    assert measurement["nearest ipc 1"].values == 3 == measurement["nearest ipc 1"].low
    assert measurement["raw at the nearest ipc 1"].values == pytest.approx(0, abs=1e-3)
    assert measurement["normalized"].values[0, 1] == 0
    assert measurement["between experts at the nearest ipc 1"].values > 0.1
    assert measurement["raw minus between experts ipc 1"].values == pytest.approx(
        -measurement["between experts at the nearest ipc 1"].values, abs=1e-3
    )


def test_class_structure_and_known_relations() -> None:
    table = gaussians(1, classes=4)
    order = torch.from_numpy(table.labels.copy())
    labels = torch.tensor([[0.6, 0.2, 0.2, 0.0], [0.2, 0.6, 0.0, 0.2], [0.2, 0.0, 0.6, 0.2], [0.0, 0.2, 0.2, 0.6]])[order]
    named = DistilledDataset(**{**vars(distilled(table, Labels.encode(labels))), "classes": ("a|a", "a|b", "b|a", "b|b")})
    planted = Planted(arm("labels", '["draw"]', task='"set"', draw='"{draw}"'), "{ draw = [0, 1] }", lambda cell: {"images": 4}, lambda cell: named)
    options = module.ClassStructureOptions(title="t", of=Selector(arm="labels"), related="|")
    measurement, _ = planted.measure(module.class_structure, options)
    # of three other classes two share a half, and all of the mass lies on them
    assert measurement["mass on related classes"].values == pytest.approx(1)
    assert measurement["under an even spread"].values == pytest.approx(2 / 3)
    assert measurement["times an even spread"].values == pytest.approx(1.5)
    with pytest.raises(OptionError, match="class names such as 'a|a' are not divided by '/' into equally many parts; leave `related` out"):
        planted.measure(module.class_structure, module.ClassStructureOptions(title="t", of=Selector(arm="labels"), related="/"))


def test_labels_over_training() -> None:
    uniform, sharp = [[0.25] * 4] * 4, torch.eye(4).roll(1, 0).tolist()
    planted = Planted(
        arm("labels", '["epoch"]', task='"set"', at='"{epoch}"'),
        "{ epoch = [0, 30] }",
        lambda cell: {"images": 4},
        lambda cell: rows(*(uniform if cell.coordinates["epoch"] == 0 else sharp)),
    )
    measurement, _ = planted.measure(module.label_profile, module.LabelProfileOptions(title="t", of=Selector(arm="labels"), images=2, entries=2))
    assert measurement["entropy at the first"].values == pytest.approx(1)
    assert measurement["entropy"].values == pytest.approx([np.log(4), 0])
    assert measurement["entry"].values[0] == pytest.approx(np.array([[0.25, 0.25], [1, 0]]))
    assert measurement["top class changed"].values == pytest.approx(0.75)  # ties name class 0, which is right once
    assert len(measurement.notes) == 4


def test_the_spread_between_seeds() -> None:
    planted = Planted(
        arm("soft", '["ipc", "draw"]', ipc='"{ipc}"', draw='"{draw}"'),
        "{ ipc = [1, 10], draw = [0, 1, 2] }",
        lambda cell: [0.5 + 0.1 * cell.coordinates["draw"] + shift for shift in (-0.01, 0.01)],
    )
    measurement, _ = planted.measure(module.seed_spread, module.SeedSpreadOptions(title="t", of=Selector(arm="soft"), factor="draw"))
    assert measurement["spread"].values == pytest.approx([0.1, 0.1])
    assert measurement["students"].values == pytest.approx([0.01, 0.01])
    assert measurement["accuracy"].values[:, 0] == pytest.approx([0.5, 0.6, 0.7])
    assert measurement["largest spread"].low < 0.1 < measurement["largest spread"].high
    with pytest.raises(OptionError, match="a spread between seeds needs at least 2 of them, got 1; give the axis 'expert' more values"):
        planted.measure(module.seed_spread, module.SeedSpreadOptions(title="t", of=Selector(arm="soft"), factor="expert"))


def test_two_ways_to_an_early_expert() -> None:
    body = "".join(
        arm(name, f'["{axis}", "draw"]', at=f'"{{{axis}}}"', draw='"{draw}"')
        + arm(f"{name}-expert", f'["{axis}"]', task='"expert-score"', at=f'"{{{axis}}}"')
        for name, axis in (("slow", "late"), ("fast", "early"))
    )

    def measure(cell: Cell) -> list[float]:
        reached = 0.02 * cell.coordinates["late"] if "late" in cell.coordinates else 0.2 * cell.coordinates["early"]
        if cell.arm.endswith("expert"):
            return [reached]
        return [reached / 2 + 0.05 * ("late" in cell.coordinates) + 0.01 * cell.coordinates["draw"]] * 2

    planted = Planted(body, "{ late = [5, 10, 20, 30], early = [0.5, 1, 2], draw = [0, 1] }", measure)
    options = module.VersusOptions(
        title="t",
        first="slow",
        first_expert=Selector(arm="slow-expert"),
        first_students=Selector(arm="slow"),
        first_over="late",
        second="fast",
        second_expert=Selector(arm="fast-expert"),
        second_students=Selector(arm="fast"),
        second_over="early",
    )
    measurement, _ = planted.measure(module.versus, options)
    assert measurement["gap"].values == pytest.approx(0.05)
    assert measurement["best gap"].values == pytest.approx(0.05 + 0.3 - 0.2)
    assert measurement.axes["accuracy of the expert"][0] == pytest.approx(0.1)
    assert measurement.axes["accuracy of the expert"][-1] == pytest.approx(0.4)
