import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.small import PLAN, SHAPE, distilled, gaussians, network

from limbeck.errors import FileFormatError
from limbeck.experts.checkpoint import expert_from_module, load_expert
from limbeck.experts.expert import Expert
from limbeck.models import ModelSpec
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.types.pixels import PixelSpace, Scale

TABLE = gaussians(3)
NET = network("convnet:depth=1,width=4,norm=batch")
STATE = NET.init(Streams(0))
MODULE = NET.loaded(STATE)


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model_state_dict": STATE},
        {"model": STATE},
        {"state_dict": {"model": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()},
    ],
)
def test_a_state_dict_is_found_wherever_trainers_put_it(tmp_path: Path, content: Any) -> None:
    made = load_expert(written(tmp_path / "net.pt", content), NET, PixelSpace())
    assert made.step == -1
    assert all(torch.equal(made.state[name], tensor) and made.state[name].dtype == tensor.dtype for name, tensor in STATE.items())
    with torch.no_grad():
        assert torch.allclose(made.logits(TABLE, PLAN), MODULE(TABLE.images / 255), atol=1e-6)


def test_every_way_in_gives_the_same_expert(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.safetensors")
    ways = [
        load_expert(written(tmp_path / "new.pt", STATE), NET, PixelSpace()),
        load_expert(tmp_path / "net.safetensors", NET, PixelSpace()),
        expert_from_module(MODULE, NET, PixelSpace()),
    ]
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    ways.append(load_expert(tmp_path / "old.pt", NET, PixelSpace()))
    assert len({way.digest for way in ways}) == 1
    other = load_expert(written(tmp_path / "other.pt", NET.init(Streams(1))), NET, PixelSpace())
    assert other.digest != ways[0].digest


def test_a_limbeck_snapshot_brings_its_pixel_space_and_architecture(tmp_path: Path) -> None:
    other = network("mlp:width=4,depth=1")
    pixels = PixelSpace((Scale(torch.tensor(2.0)),))
    digest = Expert(other, other.init(Streams(0)), pixels, 7, "").save(tmp_path / "a.safetensors", {})
    made = load_expert(tmp_path / "a.safetensors", NET, PixelSpace())
    assert (made.step, made.digest, made.network, made.pixels.header()) == (7, digest, other, pixels.header())
    with pytest.raises(FileFormatError, match="is an expert for 2 classes of 1x8x8 images; wanted 3 classes of 1x8x8; use an expert of this data$"):
        load_expert(tmp_path / "a.safetensors", network("softmax", classes=3), PixelSpace())


def test_a_snapshot_whose_tensors_do_not_fit_its_own_architecture_is_refused(tmp_path: Path) -> None:
    Expert(network("softmax"), STATE, PixelSpace(), 7, "").save(tmp_path / "a.safetensors", {})
    with pytest.raises(
        FileFormatError, match=r"a.safetensors': tensor 'head.weight' has shape \[2, 64\], wanted \[2, 64\]|lacks the tensor|has the tensor"
    ):
        load_expert(tmp_path / "a.safetensors", NET, PixelSpace())


def test_a_snapshot_cannot_make_limbeck_run_code_of_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot may name a model factory; only the user may say that it is run."""
    (tmp_path / "evil_factory.py").write_text("import pathlib\npathlib.Path('ran').touch()\ndef make(shape, classes):\n    raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    theirs = Network(ModelSpec(name="evil_factory:make"), SHAPE, 2)
    Expert(theirs, STATE, PixelSpace(), 7, "").save(tmp_path / "a.safetensors", {})
    with pytest.raises(FileFormatError, match="asks to run the code 'evil_factory:make'; use --model evil_factory:make if you trust it$"):
        load_expert(tmp_path / "a.safetensors", NET, PixelSpace())
    assert not (tmp_path / "ran").exists()


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in STATE.items() if key != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (without("head.bias"), "lacks the tensor 'head.bias' of convnet:"),
        ({**STATE, "head.bias": torch.zeros(5)}, r": tensor 'head.bias' has shape \[5\], wanted \[2\] for convnet:.* with 2 classes"),
        ({**STATE, "aux.weight": torch.zeros(1)}, "has the tensor 'aux.weight' that convnet:.* lacks"),
        ({}, "lacks the tensor '"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path, content: dict[str, torch.Tensor], sentence: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(content, path) if suffix == ".pt" else save_file(content, path)
    with pytest.raises(FileFormatError, match=f"^'.*net{suffix}'.*{sentence}.*; use a checkpoint of that architecture or give its --model$"):
        load_expert(path, NET, PixelSpace())


@pytest.mark.parametrize("content", [[1, 2], 3, {"epoch": 3}, {0: torch.zeros(1)}, {"state_dict": [STATE]}, torch.zeros(3)])
def test_what_is_no_state_dict_is_one_sentence(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FileFormatError, match="net.pt' does not hold a state dict of tensors; save model.state_dict\\(\\) or a .safetensors file$"):
        load_expert(written(tmp_path / "net.pt", content), NET, PixelSpace())


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "module"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "net.pt", tmp_path / "ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(str(target)), protocol=2))
    elif form == "module":
        torch.save(MODULE, path)
    else:
        torch.save({"state_dict": Bomb(str(target))}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(
        FileFormatError, match=r"^'.*net.pt' is not a checkpoint that can be read safely \(.*\); save model.state_dict\(\) or a .safetensors file$"
    ):
        load_expert(path, NET, PixelSpace())
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_one_sentence(tmp_path: Path, zipped: bool) -> None:
    """Cut short at many lengths, and with bytes overwritten at many places: read correctly or refused, never a traceback."""
    torch.save(STATE, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    cuts = [whole[: len(whole) * part // 12] for part in range(12)]
    places = range(0, len(whole), max(1, len(whole) // 60))
    for content in cuts:
        (tmp_path / "net.pt").write_bytes(content)
        with pytest.raises(FileFormatError):
            load_expert(tmp_path / "net.pt", NET, PixelSpace())
    for content in (whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :] for at in places):
        (tmp_path / "net.pt").write_bytes(content)
        with suppress(FileFormatError):
            load_expert(tmp_path / "net.pt", NET, PixelSpace())


@pytest.mark.parametrize("name", ["absent.pt", "folder.pt", "text.safetensors", "other.safetensors"])
def test_other_paths_are_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    distilled(TABLE).save(tmp_path / "other.safetensors")
    sentences = {
        "absent.pt": "^no such checkpoint: '.*absent.pt'; check the path$",
        "folder.pt": "is not a checkpoint that can be read safely",
        "text.safetensors": "is not a checkpoint that can be read safely",
        "other.safetensors": "other.safetensors' lacks the tensor",
    }
    with pytest.raises(FileFormatError, match=sentences[name]):
        load_expert(tmp_path / name, NET, PixelSpace())
