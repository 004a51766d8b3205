import json
from pathlib import Path

import pytest
import torch
from tests.small import PLAN, flip_byte, gaussians, network

from limbeck.cache import Cache
from limbeck.data.pixels import normalize
from limbeck.data.tables import Subset
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.experts import trajectory as module
from limbeck.experts.trajectory import EXPERT_RECIPE, Trajectory, find_trajectory, snapshot_steps, train_expert
from limbeck.streams import Streams
from limbeck.train.students import score_logits
from limbeck.types.recipe import Recipe

TRAIN, VALIDATION = gaussians(32), gaussians(20, seed=1)
PIXELS = normalize(TRAIN)
RECIPE = Recipe(lr=0.05, batch_size=8, epochs=3)  # 8 steps an epoch
STEPS = [0, 1, 2, 4, 8, 16, 24]


def train(
    root: Path, *, model: str = "mlp:width=8,depth=1", recipe: Recipe = RECIPE, seed: int = 0, validation: object = VALIDATION, index: int = 0
) -> Trajectory:
    return train_expert(network(model), recipe, TRAIN, validation, PIXELS, seed=seed, index=index, plan=PLAN, cache=Cache(root))  # type: ignore[arg-type]


def digests(made: Trajectory) -> list[str]:
    return [snapshot.digest for snapshot in made.snapshots]


def test_snapshots_are_log_spaced_in_the_first_epoch_and_then_each_epochs_end() -> None:
    assert snapshot_steps(64, 192) == [0, 2, 4, 8, 16, 32, 64, 128, 192]
    assert snapshot_steps(8, 24) == STEPS
    assert snapshot_steps(1, 3) == [0, 1, 2, 3]
    assert snapshot_steps(100, 30) == [0, 3, 6, 12, 25, 30]
    assert snapshot_steps(10, 0) == [0]


def test_snapshots_hold_the_training_and_its_validation_scores(tmp_path: Path) -> None:
    made = train(tmp_path)
    assert [snapshot.step for snapshot in made.snapshots] == STEPS
    assert [snapshot.epoch for snapshot in made.snapshots] == [step / 8 for step in STEPS]
    start = network("mlp:width=8,depth=1").init(Streams(0)["expert", 0])
    assert all(torch.equal(made.at(0).state[name], tensor) for name, tensor in start.items())
    for snapshot in made.snapshots:
        logits = made.at(snapshot.step).logits(VALIDATION, PLAN)
        scored = score_logits(logits, torch.from_numpy(VALIDATION.labels.copy()))
        entropy = torch.distributions.Categorical(logits=logits.double()).entropy().mean()
        assert (snapshot.accuracy, snapshot.loss) == (scored.accuracy, scored.loss)
        assert snapshot.entropy == pytest.approx(float(entropy), rel=1e-6)
    assert made.last.step == 24
    assert made.last.accuracy is not None
    assert made.last.accuracy > 0.95
    assert sorted(path.name for path in made.folder.iterdir()) == sorted([*(s.file for s in made.snapshots), "trajectory.json"])
    with pytest.raises(OptionError, match="^no snapshot at step 3; kept steps: 0, 1, 2, 4, 8, 16, 24$"):
        made.at(3)


def test_a_second_call_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = train(tmp_path)
    monkeypatch.setattr(module, "fit", None)
    assert train(tmp_path) == made
    assert find_trajectory(Cache(tmp_path), made.key) == made
    assert find_trajectory(Cache(tmp_path / "elsewhere"), made.key) is None


def test_its_training_time_is_kept_for_later_runs(tmp_path: Path) -> None:
    made = train(tmp_path)
    assert made.earlier_seconds == 0
    stored = json.loads((made.folder / "trajectory.json").read_text())
    assert train(tmp_path).earlier_seconds == stored["seconds"] > 0
    # experts of earlier versions do not say
    del stored["seconds"]
    (made.folder / "trajectory.json").write_text(json.dumps(stored))
    assert train(tmp_path).earlier_seconds is None


def test_what_determines_an_expert_determines_its_key(tmp_path: Path) -> None:
    short = RECIPE.with_(epochs=0)
    base = train(tmp_path, recipe=short)
    others = [
        train(tmp_path, recipe=short, seed=1),
        train(tmp_path, recipe=short, index=1),
        train(tmp_path, recipe=short.with_(lr=0.1)),
        train(tmp_path, recipe=short, model="softmax"),
        train(tmp_path, recipe=short, validation=gaussians(20, seed=2)),
    ]
    assert len({base.key, *(other.key for other in others)}) == 6
    assert digests(others[0])[0] != digests(base)[0] != digests(others[1])[0]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("model", ["mlp:width=8,depth=1", "convnet:depth=1,width=4,norm=batch"])
@pytest.mark.parametrize("stops", [[0], [1, 5], [8, 9, 23], [24], [3, 3, 16]])
def test_interruptions_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, stops: list[int]) -> None:
    """Stopped at some steps, whether just after a snapshot or between two, and taken up again: the same snapshots, byte for byte."""
    straight = train(tmp_path / "straight", model=model)
    real = module.fit
    for stop in stops:

        def interrupted(net, state, *arguments, observe_at, observe, tick, stop=stop, **options):  # type: ignore[no-untyped-def]
            def at(live):  # type: ignore[no-untyped-def]
                if live.step in observe_at:
                    observe(live)
                if live.step == stop:
                    raise Interrupted

            return real(net, state, *arguments, observe_at=range(99), observe=at, tick=tick, **options)

        monkeypatch.setattr(module, "fit", interrupted)
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", model=model)
    monkeypatch.setattr(module, "fit", real)
    resumed = train(tmp_path / "stopped", model=model)
    assert digests(resumed) == digests(straight)
    assert resumed.snapshots == straight.snapshots
    assert not (resumed.folder / "resume.safetensors").exists()


def test_a_damaged_resume_file_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / "straight")
    (tmp_path / "damaged" / "experts" / straight.key).mkdir(parents=True)
    (tmp_path / "damaged" / "experts" / straight.key / "resume.safetensors").write_bytes(b"half a file")
    assert digests(train(tmp_path / "damaged")) == digests(straight)


def test_an_altered_or_exchanged_snapshot_is_refused(tmp_path: Path) -> None:
    made = train(tmp_path)
    flip_byte(made.folder / made.snapshots[2].file, -1)
    with pytest.raises(FileFormatError, match="was altered after it was written"):
        made.at(2)
    (made.folder / made.snapshots[2].file).write_bytes((made.folder / made.snapshots[3].file).read_bytes())
    with pytest.raises(
        FileFormatError, match=r"^'.*step-0000002.safetensors' is not the snapshot that was written; delete its folder and train again$"
    ):
        made.at(2)


@pytest.mark.parametrize("loss", ["missing", "record"])
def test_an_incomplete_folder_is_trained_again(tmp_path: Path, loss: str) -> None:
    made = train(tmp_path)
    (made.folder / made.snapshots[1].file).unlink() if loss == "missing" else (made.folder / "trajectory.json").write_text("{")
    assert train(tmp_path) == made
    assert made.at(1).step == 1


def test_divergence_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError) as caught:
        train(tmp_path, recipe=RECIPE.with_(lr=1e20, loss="mse"))
    assert str(caught.value).startswith("expert 0 diverged before step ")
    assert str(caught.value).endswith(" (learning rate 1e+20): its numbers are no longer finite; use a smaller --expert-lr")


def test_without_validation_images_nothing_is_measured(tmp_path: Path) -> None:
    made = train(tmp_path, validation=Subset(VALIDATION, []))
    assert all((s.accuracy, s.loss, s.entropy) == (None, None, None) for s in made.snapshots)
    record = json.loads((made.folder / "trajectory.json").read_text())
    assert record["snapshots"][0]["accuracy"] is None
    assert digests(made)[0] != digests(train(tmp_path))[0]  # each names its own key


def test_experts_are_trained_as_the_table_says() -> None:
    assert (EXPERT_RECIPE.optimizer, EXPERT_RECIPE.lr, EXPERT_RECIPE.momentum, EXPERT_RECIPE.weight_decay, EXPERT_RECIPE.batch_size) == (
        "sgd",
        0.01,
        0.9,
        5e-4,
        256,
    )
