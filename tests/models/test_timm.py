"""Models of the timm package, through a stand-in for it: the package itself is an extra that these tests do not install."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError, OptionError
from limbeck.models import ModelSpec, build, parse_model
from limbeck.streams import Streams


class Convolutional(nn.Module):
    """Any size; pooled features of `width` channels."""

    def __init__(self, channels: int, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)).relu().mean((2, 3))


class Patches(nn.Module):
    """One size only, which it must be told, as vision transformers do."""

    def __init__(self, channels: int, img_size: tuple[int, int] = (224, 224)) -> None:
        super().__init__()
        self.size, self.linear = img_size, nn.Linear(channels, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert tuple(images.shape[2:]) == tuple(self.size), f"input size {tuple(images.shape[2:])} is not {self.size}"
        return self.linear(images.mean((2, 3)))


class Deep(nn.Module):
    """Needs at least 32 pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 32).flatten(1)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("timm")
    kinds = {"conv_net": Convolutional, "patches_16": Patches}

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int, **sizes: object) -> nn.Module:
        assert (pretrained, num_classes) == (False, 0)
        return Deep(**sizes) if name == "deep" else kinds[name](in_chans, **sizes)

    made.create_model, made.list_models = create_model, lambda: [*kinds, "deep"]  # type: ignore[attr-defined]
    made.is_model = lambda name: name in made.list_models()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", made)
    return made


def new(text: str, shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=4, generator=Streams(seed).torch("init"))


def test_a_spec_of_timm_is_plain_data_and_no_code_of_the_users():
    spec = parse_model("timm:vit_tiny_patch16_224.augreg_in21k")
    assert (str(spec), spec.is_timm, spec.is_factory, spec.options) == ("timm:vit_tiny_patch16_224.augreg_in21k", True, False, {})
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert not parse_model("convnet").is_timm


@pytest.mark.parametrize("text", ["timm", "timm:", "timm:hf-hub:owner/name", "timm:hf_hub:owner/name", "timm:local-dir:/tmp/x", "timm:a/b"])
def test_only_names_of_timms_own_list_are_written(text):
    with pytest.raises(OptionError) as raised:
        parse_model(text)
    assert str(raised.value) == f"a timm model is written timm:NAME with a name of timm's own list, got {text!r}; write for example timm:resnet10t"


def test_options_are_refused():
    with pytest.raises(OptionError, match=r"^timm:x takes no options, got \['width'\]; wrap timm in your own module:function to set them$"):
        ModelSpec(name="timm:x", options={"width": 3})


@pytest.mark.parametrize("text", ["timm:conv_net", "timm:patches_16"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_features_and_head_for_the_images_at_hand(timm, text, shape):
    model = new(text, shape)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.training
    assert model.eval()(images).shape == (2, 4)
    torch.testing.assert_close(model(images), model.head(model.features(images)))


def test_seeded_and_without_a_trace(timm):
    state = torch.get_rng_state()
    first, again, other = (new("timm:conv_net", seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["body.conv.weight"], other["body.conv.weight"])
    assert first["body.norm.num_batches_tracked"] == 0


def test_an_unknown_name_and_images_that_are_too_small(timm):
    with pytest.raises(OptionError) as raised:
        new("timm:convnet")
    assert str(raised.value) == "timm has no model 'convnet'; did you mean 'conv_net'? timm.list_models() lists them"
    with pytest.raises(
        OptionError, match=r"^timm:deep gives no pooled features of 3x16x16 images \(.*\); use larger images with --size, or another model$"
    ):
        new("timm:deep")


class _Refusing:
    """An import that fails as timm's does beside a torchvision without operators."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")


@pytest.mark.parametrize("reason", ["ModuleNotFoundError", "RuntimeError"])
def test_any_failure_of_the_import_means_not_installed(monkeypatch, reason):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    if reason == "RuntimeError":
        monkeypatch.setattr(sys, "meta_path", [_Refusing, *sys.meta_path])
    else:
        monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(LimbeckError) as raised:
        new("timm:resnet18")
    assert str(raised.value) == (
        f"timm:NAME needs the 'timm' package, which is not installed or not importable ({reason}); pip install 'limbeck[timm]'"
    )
