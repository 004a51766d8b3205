import math
import re
from itertools import count
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import ClassVar, get_args

import pytest
import torch
from pydantic import BaseModel
from tests.small import gaussians, problem

from limbeck.errors import LimbeckError, OptionError
from limbeck.methods import METHODS
from limbeck.methods.driver import Metrics, Size, State, Turn, run_method, seconds_spent
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import SyntheticOptions, finished, owners_of, start_images
from limbeck.progress import Reporter
from limbeck.types.distilled import DistilledDataset

GIVEN = problem(gaussians((9, 9)), (1, 1))


class Options(SyntheticOptions):
    rate: float = 0.5


class Shrink:
    """Moves images toward noise; steps in `bad` are not finite unless the step size is small, and `stop_at` presses Ctrl-C."""

    options: BaseModel
    recipes: ClassVar[dict[str, dict[str, object]]] = {"smoke": {"steps": 6}}

    def __init__(self, options: Options | None = None, bad: tuple[int, ...] = (), needs: float = 0.5, stop_at: int | None = None) -> None:
        self.options, self.bad, self.needs, self.stop_at = options or Options(steps=8), bad, needs, stop_at
        self.calls: list[tuple[int, float]] = []

    def total_steps(self, problem: Problem) -> int:
        return self.options.steps  # type: ignore[attr-defined,no-any-return]

    def work(self, size: Size) -> float:
        return 0.0

    def init(self, problem: Problem) -> State:
        return {"images": start_images(problem, "real")}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        if turn.number == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((turn.number, turn.scale))
        if turn.number in self.bad and turn.scale > self.needs:
            return {"images": state["images"] * math.nan}, {"loss": 1.0}
        target = torch.randn(state["images"].shape, generator=turn.streams.torch("target"))
        return {"images": state["images"].lerp(target, self.options.rate * turn.scale)}, {"loss": float(turn.number)}  # type: ignore[attr-defined]

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        return finished(problem, state["images"])


def test_a_run_that_is_interrupted_goes_on_to_the_same_set(tmp_path: Path) -> None:
    whole = run_method(Shrink(), GIVEN)
    with pytest.raises(KeyboardInterrupt):
        run_method(Shrink(stop_at=5), GIVEN, folder=tmp_path)
    rest = Shrink()
    made = run_method(rest, GIVEN, folder=tmp_path)
    assert [number for number, _ in rest.calls] == [5, 6, 7]
    assert made.digest == whole.digest


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, again = Shrink(), Shrink()
    assert run_method(first, GIVEN, folder=tmp_path).digest == run_method(again, GIVEN, folder=tmp_path).digest
    assert len(first.calls) == 8
    assert again.calls == []


def test_a_broken_checkpoint_only_costs_time(tmp_path: Path) -> None:
    whole = run_method(Shrink(), GIVEN)
    (tmp_path / "state.safetensors").write_bytes(b"nonsense")
    assert run_method(Shrink(), GIVEN, folder=tmp_path).digest == whole.digest


def test_a_step_that_is_not_finite_is_undone_and_taken_again_at_half_size() -> None:
    told = Listening()
    method = Shrink(bad=(3,), needs=0.25)
    made = run_method(method, GIVEN, told)
    assert method.calls[3:7] == [(3, 1.0), (3, 0.5), (3, 0.25), (4, 0.25)]
    assert told.notes == [f"step 3 was not finite; it is taken again with step sizes x {scale:g}" for scale in (0.5, 0.25)]
    assert torch.isfinite(made.images).all()
    about = made.provenance["optimization"]
    assert (about["steps"], about["restarts"], about["step_scale"]) == (8, 2, 0.25)


def test_a_step_that_is_never_finite_ends_with_a_sentence() -> None:
    with pytest.raises(
        LimbeckError, match="step 2 of Shrink is not finite even with step sizes x 0.000976562; use smaller rates in --method, which are rate=0.5"
    ):
        run_method(Shrink(bad=(2,), needs=0), GIVEN)


class Listening(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later whenever it is read, which the driver does twice a step."""
    seconds = count()
    monkeypatch.setattr("limbeck.methods.driver.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def test_a_budget_ends_the_run_and_says_so(clock: None) -> None:
    told = Listening()
    cut = run_method(Shrink(Options(steps=10**6)), GIVEN, told, budget_seconds=20.0)
    about = cut.provenance["optimization"]
    taken = about["steps"]
    assert 5 < taken < 20
    assert about["total"] == 10**6
    assert [entry["step"] for entry in about["curve"]] == [taken]  # the last step is there, however few were taken
    assert told.notes == [f"distilling was stopped by --budget after {taken} of 1,000,000 steps"]
    # nothing in this method falls along a run
    assert torch.equal(run_method(Shrink(Options(steps=taken)), GIVEN).images, cut.images)
    assert "total" not in run_method(Shrink(), GIVEN).provenance["optimization"]


def test_a_shorter_budget_does_not_get_what_a_longer_one_made(clock: None, tmp_path: Path) -> None:
    def steps(seconds: float | None) -> int:
        made = run_method(Shrink(Options(steps=100)), GIVEN, folder=tmp_path, budget_seconds=seconds)
        assert seconds is None or seconds_spent(tmp_path, seconds) < seconds + 3
        return int(made.provenance["optimization"]["steps"])

    long = steps(60.0)
    assert steps(60.0) == long  # the same budget gives the same set
    short = steps(20.0)
    assert short < long / 2
    assert steps(20.0) == short
    assert steps(60.0) == long
    assert long < steps(100.0) < 100 == steps(None)  # a longer one goes on
    assert steps(20.0) == short


def test_a_set_whose_images_are_not_all_made_is_refused(clock: None, tmp_path: Path) -> None:
    class InTurn(Shrink):
        def unmade(self, problem: Problem, steps: int) -> int:
            return 1 if steps < 50 else 0

    with pytest.raises(OptionError, match="stopped by --budget after 11 of 100 steps, when 1 of the 2 images were not made yet; the steps are kept"):
        run_method(InTurn(Options(steps=100)), GIVEN, folder=tmp_path, budget_seconds=20.0)
    rest = InTurn(Options(steps=100))
    run_method(rest, GIVEN, folder=tmp_path)
    assert rest.calls[0][0] == 11


def test_what_is_unmade_is_counted_by_the_methods_that_make_images_in_turn() -> None:
    four = problem(gaussians((9, 9)), (2, 2))
    sre2l = parse_method("sre2l:batch=2,steps=10")
    assert [sre2l.unmade(four, steps) for steps in (0, 9, 10, 19, 20)] == [4, 4, 2, 2, 0]  # type: ignore[attr-defined]
    rded = parse_method("rded")
    assert [rded.unmade(four, steps) for steps in (0, 1, 2)] == [4, 2, 0]  # type: ignore[attr-defined]


def test_interim_checks_are_on_the_interim_set() -> None:
    seen: list[torch.Tensor] = []

    def check(dataset: DistilledDataset) -> float:
        seen.append(dataset.images.clone())
        return 0.25

    made = run_method(Shrink(), GIVEN, check=check, checks=3)
    curve = made.provenance["optimization"]["curve"]
    assert [entry["step"] for entry in curve if "validation_accuracy" in entry] == [2, 4, 6]
    assert torch.equal(seen[1], run_method(Shrink(Options(steps=4)), GIVEN).images)
    assert [entry["loss"] for entry in curve] == list(range(8))


def test_images_start_class_by_class_from_the_classes_own_images() -> None:
    given = problem(gaussians((9, 9, 9)), (2, 1, 3))
    images = start_images(given, "real")
    assert owners_of(given).tolist() == [0, 0, 1, 2, 2, 2]
    for image, owner in zip(images, owners_of(given).tolist(), strict=True):
        of_class = given.pixels(given.train.read(given.members(owner)))
        assert (of_class == image).flatten(1).all(1).any()


def test_a_method_is_read_with_recipe_and_options() -> None:
    method = parse_method("random-real:selector=herding", selector="k-center", steps=None)
    assert method.options.selector == "herding"  # type: ignore[attr-defined]
    assert parse_method("random-real", selector="k-center").options.selector == "k-center"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("random-reel", "unknown method 'random-reel'; did you mean 'random-real'?"),
        ("random-real@paper", "method random-real has no recipe 'paper'; known: cutmix-300"),
        ("random-real:selector", "options of random-real are written key=value, got 'selector'; write for example random-real:steps=200"),
        ("random-real:selektor=x", "method random-real has no option 'selektor'; did you mean 'selector'?"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_method(text)
    assert str(caught.value).startswith(sentence)


NONE = [
    (name, field)
    for name, kind in METHODS.items()
    for field, info in kind.Options.model_fields.items()
    if field in ("augment", "inner_augment", "view_augment") or re.search(r"\bnone\b", info.description or "")
]


@pytest.mark.parametrize(("name", "field"), NONE)
def test_none_is_read_wherever_it_is_documented(name: str, field: str) -> None:
    value = getattr(parse_method(f"{name}:{field}=none").options, field)
    assert value == (None if NoneType in get_args(METHODS[name].Options.model_fields[field].annotation) else "none")


def test_none_is_documented_for_these() -> None:
    assert {("dm", "augment"), ("bptt", "inner_augment"), ("rded", "view_augment"), ("mtt", "batch"), ("sre2l", "teacher")} <= set(NONE)


def test_a_value_with_options_of_its_own_keeps_its_commas() -> None:
    options = parse_method("sre2l:teacher=convnet:width=64,norm=batch,steps=7").options
    assert (options.teacher, options.steps) == ("convnet:width=64,norm=batch", 7)  # type: ignore[attr-defined]
    assert parse_method("dm:augment=dsa:color_crop,align_corners=true").options.augment == "dsa:color_crop,align_corners=true"  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="method dm has no option 'stepz'; did you mean 'steps'"):
        parse_method("dm:image_lr=1,stepz=3")
