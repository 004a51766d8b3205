"""Model specifications: text, plain data, and the sentences for what cannot be read."""

import json
import subprocess
import sys

import pytest

from limbeck.errors import OptionError
from limbeck.models import MODELS, ModelSpec, parse_model


def test_defaults_are_filled_in():
    assert parse_model("convnet").to_dict() == {"name": "convnet", "options": {"width": 128, "depth": None, "norm": "instance"}}
    assert parse_model("resnet18-bn").options["norm"] == "batch"
    assert parse_model("convnet-tiny").options == {"width": 16, "depth": None, "norm": "instance"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("convnet-d4-w64", "convnet:width=64,depth=4"),
        ("convnet-w64-d4", "convnet: depth = 4 , width = 64"),
        ("convnet-d3:norm=batch", "convnet:norm=batch,depth=3"),
        ("convnet-w128", "convnet"),
        ("mlp-d3-w32", "mlp:width=32,depth=3"),
        ("resnet18-w32", "resnet18:width=32"),
        ("resnet18-bn-w32", "resnet18-bn:width=32"),
        ("convnet-tiny-d2", "convnet-tiny:depth=2,width=16"),
    ],
)
def test_two_texts_of_one_model_are_equal_and_hash_alike(text, same):
    assert parse_model(text) == parse_model(same)
    assert len({parse_model(text), parse_model(same)}) == 1


@pytest.mark.parametrize("text", [*MODELS, "convnet:width=64,depth=4,norm=none", "mlp:width=3", "my.package:Net.small"])
def test_text_and_json_round_trips(text):
    spec = parse_model(text)
    assert str(spec) == text
    assert parse_model(str(spec)) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert ModelSpec.model_validate(text) == spec


def test_a_factory_is_recognized_and_not_imported():
    assert parse_model("no_such_module:make").is_factory
    assert not parse_model("convnet").is_factory


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "convnt",
            "unknown model 'convnt'; did you mean 'convnet'? known: alexnet, convnet, convnet-tiny, lenet, linear, mlp, resnet18, resnet18-ap, resnet18-bn, "
            "resnet32, softmax, transformer, vgg11, timm:NAME, or package.module:function for your own",
        ),
        ("convnet:widht=3", "model convnet has no option 'widht'; did you mean 'width'? known: depth, norm, width"),
        ("softmax:width=3", "model softmax has no option 'width'; it takes none"),
        ("softmax-w3", "model softmax has no option 'width'; it takes none"),
        ("convnet-w0", "option width of model convnet: input should be greater than or equal to 1, got '0'"),
        ("convnet:norm=instant", "option norm of model convnet: input should be 'instance', 'batch', 'layer', 'group' or 'none', got 'instant'"),
        ("convnet:64", "options of convnet are written key=value, got '64'; write for example convnet:key=value,key=value"),
        ("convnet-w64:width=32", "model 'convnet-w64:width=32' gives width twice, as 64 and 32; give it once"),
    ],
)
def test_unreadable_text(text, sentence):
    with pytest.raises(OptionError) as raised:
        parse_model(text)
    assert str(raised.value) == sentence


def test_unreadable_data():
    with pytest.raises(OptionError, match=r"^your own model 'a:b' takes no options, got \['width'\]; fix them inside the function$"):
        ModelSpec(name="a:b", options={"width": 3})
    with pytest.raises(OptionError, match=r"^a model is stored as a name and its options, got \['kind'\] \(name: field required\); write it with"):
        ModelSpec.from_dict({"kind": "convnet"})


def test_listing_models_imports_no_torch():
    code = "import sys; from limbeck.models import MODELS, parse_model; parse_model('convnet-d3'); assert 'torch' not in sys.modules, 'torch'"
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
