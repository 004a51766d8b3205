from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import PLAN, Oracle, as_shipped, gaussians, network

from limbeck import store
from limbeck.data.pixels import normalize
from limbeck.errors import FileFormatError, OptionError
from limbeck.experts.expert import KIND, Ensemble, Expert, Labeler, labeler_of
from limbeck.streams import Streams
from limbeck.types.pixels import PixelSpace

TABLE = gaussians(5)


def expert(seed: int = 0, pixels: PixelSpace | None = None) -> Expert:
    net = network()
    return Expert(net, net.init(Streams(seed)), pixels or PixelSpace(), 3, f"digest {seed}")


def test_logits_are_linear_in_the_experts_own_pixels() -> None:
    made = expert(pixels=normalize(TABLE))
    inputs = made.pixels(TABLE.images).flatten(1).double().numpy()
    expected = inputs @ made.state["head.weight"].double().numpy().T + made.state["head.bias"].double().numpy()
    assert np.allclose(made.logits(TABLE, PLAN).numpy(), expected, atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members_logits() -> None:
    members = (expert(0), expert(1, normalize(TABLE)), expert(2))
    logits = Ensemble(members).logits(TABLE, PLAN)
    assert torch.allclose(logits, sum(member.logits(TABLE, PLAN) for member in members) / 3, atol=1e-6)  # type: ignore[arg-type]
    assert Ensemble(members).digest != Ensemble(members[::-1]).digest != members[0].digest
    with pytest.raises(OptionError, match="^an ensemble needs at least one expert, got none$"):
        Ensemble(())


def test_one_expert_is_its_own_labeler() -> None:
    first, second = expert(0), expert(1)
    assert labeler_of([first]) is first
    assert labeler_of([first, second]) == Ensemble((first, second))
    assert isinstance(Oracle(TABLE, torch.zeros(10, 2)), Labeler)


def test_a_saved_snapshot_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = expert(pixels=normalize(TABLE))
    digest = made.save(tmp_path / "a.safetensors", {"index": 0})
    again = Expert.load(tmp_path / "a.safetensors")
    assert (again.digest, again.step, again.network) == (digest, 3, made.network)
    assert torch.equal(again.logits(TABLE, PLAN), made.logits(TABLE, PLAN))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", {"name": "no such model"}),
        ("shape", [1, 8]),
        ("shape", 8),
        ("pixels", {}),
        ("pixels", None),
        ("step", "DELETE"),
        ("classes", "DELETE"),
    ],
)
def test_hostile_headers_are_one_sentence(tmp_path: Path, key: str, value: object) -> None:
    header, tensors = Expert.parts(network(), expert().state, PixelSpace(), 0, {})
    header = {name: entry for name, entry in {**header, key: value}.items() if entry != "DELETE"}
    store.save(tmp_path / "bad.safetensors", header, tensors)
    assert header["kind"] == KIND
    with as_shipped(), pytest.raises(FileFormatError, match=r"^'.*bad.safetensors' is not a usable expert snapshot \(.*\); use an intact copy$"):
        Expert.load(tmp_path / "bad.safetensors")
