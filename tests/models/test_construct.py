"""Seeded construction: default distributions, reproducibility, no global random state, and the user's own factory."""

import math
import sys

import pytest
import torch
from torch import nn

from limbeck.errors import OptionError
from limbeck.models import MODELS, ModelSpec, build, parse_model
from limbeck.models.construct import initialize
from limbeck.streams import Streams

FACTORIES = """
import torch
from torch import nn

def good(shape, classes):
    torch.rand(3)
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels), nn.Dropout(), nn.Linear(pixels, classes))

def transposed(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes + 1))

class Pair(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()

    def forward(self, images):
        return images, images

def breaks(shape):
    return None

def none(shape, classes):
    return None

def bad_forward(shape, classes):
    return nn.Linear(999, classes)

number = 3
"""


def shape_for(text: str) -> tuple[int, int, int]:
    return (1, 1, 3) if text == "transformer" else (3, 16, 16)


def new(text: str, shape=None, classes=5, seed=0) -> nn.Module:
    shape = shape or shape_for(text)
    return build(parse_model(text), shape=shape, classes=classes, generator=Streams(seed).torch("init"))


@pytest.mark.parametrize("name", MODELS)
def test_same_stream_same_model_other_stream_other_model(name):
    first, again, other = new(name, seed=0).state_dict(), new(name, seed=0).state_dict(), new(name, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_construction_leaves_global_random_state_alone(name):
    before = torch.get_rng_state()
    new(name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", [*MODELS, "convnet:norm=batch", "convnet:norm=layer", "convnet:norm=none"])
def test_values_lie_in_pytorchs_default_bounds(name):
    for layer in new(name).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.weight.abs().max() <= bound
            # A uniform sample of n has standard deviation bound/sqrt(3) with relative standard error 1/sqrt(5 n).
            count = layer.weight.numel()
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=6 / math.sqrt(5 * count))
            if layer.bias is not None:
                assert 0 < layer.bias.abs().max() <= bound
        elif isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.running_mean == 0).all()
            assert (layer.running_var == 1).all()
            assert layer.num_batches_tracked == 0


def test_values_equal_pytorchs_own_initializer_under_the_same_generator():
    ours = new("softmax", shape=(1, 8, 8), classes=10).head
    weight = nn.init.kaiming_uniform_(torch.empty(10, 64), a=math.sqrt(5), generator=Streams(0).torch("init"))
    torch.testing.assert_close(ours.weight.data, weight, rtol=1e-6, atol=0)


def test_models_are_trainable_float32_on_the_cpu():
    for parameter in new("convnet").parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad


def test_initialize_refuses_a_layer_it_does_not_know():
    with pytest.raises(TypeError, match="no default initialization is known for Bilinear"):
        initialize(nn.Sequential(nn.Bilinear(3, 2, 2, device="meta")), torch.Generator())


@pytest.mark.parametrize("shape", [(0, 8, 8), (1, 0, 8)])
def test_impossible_shapes(shape):
    with pytest.raises(OptionError, match="a model needs a positive image shape"):
        new("softmax", shape=shape)


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module in the working directory, which is not on the import path."""
    (tmp_path / "my_models.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_models", None)


def test_factory_is_seeded_by_the_generator_and_leaves_no_trace(factories):
    path, state = list(sys.path), torch.get_rng_state()
    first = new("my_models:good")
    torch.rand(1)
    torch.set_rng_state(state)
    assert all(map(torch.equal, first.state_dict().values(), new("my_models:good").state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())
    assert sys.path == path
    assert not torch.equal(first[3].weight, new("my_models:good", seed=1)[3].weight)


def test_factory_check_changes_neither_mode_nor_statistics(factories):
    model = new("my_models:good")
    assert all(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "no_such_module:make",
            "cannot import model factory 'no_such_module:make' (ModuleNotFoundError: No module named 'no_such_module'); "
            "give package.module:function, importable from here",
        ),
        (
            "my_models:nothing",
            "cannot import model factory 'my_models:nothing' (AttributeError: module 'my_models' has no attribute 'nothing'); "
            "give package.module:function, importable from here",
        ),
        ("my_models:number", "model factory 'my_models:number' has type int, which cannot be called; name a function or class"),
        (
            "my_models:breaks",
            "model factory 'my_models:breaks' failed when called with (3, 16, 16), 5 "
            "(TypeError: breaks() takes 1 positional argument but 2 were given); it takes ((C, H, W), classes) and returns a torch.nn.Module",
        ),
        ("my_models:none", "model factory 'my_models:none' returned an object of type NoneType; it must return a torch.nn.Module"),
        (
            "my_models:transposed",
            "the model of 'my_models:transposed' must map images [B, 3, 16, 16] to logits [B, 5], got [1, 6] for one image; "
            "return the logits alone, one per class",
        ),
        (
            "my_models:Pair",
            "the model of 'my_models:Pair' must map images [B, 3, 16, 16] to logits [B, 5], got type tuple for one image; "
            "return the logits alone, one per class",
        ),
    ],
)
def test_what_a_factory_gets_wrong(factories, name, sentence):
    state = torch.get_rng_state()
    with pytest.raises(OptionError) as raised:
        new(name)
    assert str(raised.value) == sentence
    assert torch.equal(state, torch.get_rng_state())


def test_a_failing_forward_is_one_sentence(factories):
    with pytest.raises(OptionError, match=r"to logits \[B, 5\], but failed on one zero image \(RuntimeError: mat1 and mat2"):
        new("my_models:bad_forward")


def test_registry_constructors_take_shape_classes_and_options():
    for name in MODELS:
        shape = shape_for(name) if name == "transformer" else (1, 8, 8)
        with torch.device("meta"):
            model = MODELS[name](shape, 3, ModelSpec(name=name).typed_options())
            assert model(torch.zeros(2, *shape)).shape == (2, 3)
