"""What a model is, as plain data: a name of the table (or the user's factory) and its checked options. Imports no torch."""

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import OptionError, nearest
from limbeck.registry import Registry

Norm = Literal["instance", "batch", "layer", "group", "none"]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_TIMM = re.compile(r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_SHORTHAND = re.compile(r"(?P<name>.+?)(?P<suffixes>(?:-[dw]\d+)+)")
_LETTERS = {"d": "depth", "w": "width"}


class ModelOptions(BaseModel):
    """Options of a model of the table; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SoftmaxOptions(ModelOptions):
    """Softmax regression has none."""


class LinearOptions(ModelOptions):
    """Softmax regression without bias has none."""


class TransformerOptions(ModelOptions):
    """`vocabulary` numbers; `depth` blocks of `heads` heads, `width` wide, with `hidden` units."""

    vocabulary: int = Field(114, ge=2)
    width: int = Field(128, ge=1)
    heads: int = Field(4, ge=1)
    hidden: int = Field(512, ge=1)
    depth: int = Field(1, ge=1)
    norm: bool = False
    activation: Literal["relu", "gelu"] = "relu"


class MLPOptions(ModelOptions):
    """`depth` hidden layers of `width` units."""

    width: int = Field(128, ge=1)
    depth: int = Field(2, ge=1)


class ConvNetOptions(ModelOptions):
    """`depth` blocks of `width` channels; without a depth the image size decides (see `limbeck.models.convnet.default_depth`)."""

    width: int = Field(128, ge=1)
    depth: int | None = Field(None, ge=1)
    norm: Norm = "instance"


class ConvNetTinyOptions(ConvNetOptions):
    """The same network with 16 channels."""

    width: int = Field(16, ge=1)


class LeNetOptions(ModelOptions):
    """LeNet has none."""


class AlexNetOptions(ModelOptions):
    """`norm` after every convolution."""

    norm: Norm = "none"


class VGGOptions(ModelOptions):
    """`norm` after every convolution."""

    norm: Norm = "instance"


class ResNetOptions(ModelOptions):
    """`width` channels in the first stage, doubled in each of the other three."""

    width: int = Field(64, ge=1)
    norm: Norm = "instance"


class ResNetBatchOptions(ResNetOptions):
    """The same network with batch normalization."""

    norm: Norm = "batch"


class ResNet32Options(ModelOptions):
    """`width` channels in the first stage, doubled in each of the other two."""

    width: int = Field(16, ge=1)
    norm: Norm = "instance"


_TABLE: dict[str, tuple[str, type[ModelOptions]]] = {
    "convnet": ("limbeck.models.convnet:ConvNet", ConvNetOptions),
    "convnet-tiny": ("limbeck.models.convnet:ConvNet", ConvNetTinyOptions),
    "mlp": ("limbeck.models.mlp:MLP", MLPOptions),
    "softmax": ("limbeck.models.softmax:Softmax", SoftmaxOptions),
    "linear": ("limbeck.models.softmax:Linear", LinearOptions),
    "transformer": ("limbeck.models.transformer:Transformer", TransformerOptions),
    "lenet": ("limbeck.models.lenet:LeNet", LeNetOptions),
    "alexnet": ("limbeck.models.alexnet:AlexNet", AlexNetOptions),
    "vgg11": ("limbeck.models.vgg:VGG11", VGGOptions),
    "resnet18": ("limbeck.models.resnet:ResNet18", ResNetOptions),
    "resnet18-bn": ("limbeck.models.resnet:ResNet18", ResNetBatchOptions),
    "resnet18-ap": ("limbeck.models.resnet_ap:ResNet18AP", ResNetOptions),
    "resnet32": ("limbeck.models.resnet32:ResNet32", ResNet32Options),
}

MODELS = Registry("model", {name: target for name, (target, _) in _TABLE.items()})


class ModelSpec(BaseModel):
    """A model's name and options: plain JSON, hashable, checked when made, with every default filled in.

    `name` is an entry of `MODELS`, ``timm:NAME`` for a model of the timm package, or ``package.module:function`` for the user's own factory (see
    `limbeck.models.construct.build`); the two last take no options. Where a field of this type is expected in a study or recipe, the text form is
    accepted too: ``model = "convnet-d4-w64"``.

    Making a spec imports nothing. Building one that names a factory imports and runs the user's code, so do not build a spec that came out of a
    file from elsewhere unless `is_factory` is false or the user asked for that factory by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return _split(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fill_options(self) -> "ModelSpec":
        filled = _checked_options(self.name, self.options)
        self.options.clear()
        self.options.update(filled)
        return self

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        """The shortest text that `parse_model` reads back to this spec."""
        if self.name not in MODELS:
            return self.name
        defaults = _TABLE[self.name][1]().model_dump()
        changed = [f"{key}={value}" for key, value in self.options.items() if value != defaults[key]]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @property
    def is_factory(self) -> bool:
        """True when `name` is the user's own ``package.module:function``."""
        return self.name not in MODELS and not self.is_timm

    @property
    def is_timm(self) -> bool:
        """True when `name` is ``timm:NAME``: a model that the timm package builds, without its pretrained weights and without the network."""
        return _TIMM.fullmatch(self.name) is not None

    def typed_options(self) -> ModelOptions:
        """The options as the typed object that the model's constructor takes; only for models of the table."""
        return _TABLE[MODELS.check(self.name)][1](**self.options)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., "options": {...}}``, ready for JSON."""
        return self.model_dump()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelSpec":
        """Inverse of `to_dict`; raises `OptionError` for anything else."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            fault = error.errors()[0]
            raise OptionError(
                f"a model is stored as a name and its options, got {sorted(map(str, data))} "
                f"({'.'.join(map(str, fault['loc'])) or 'model'}: {fault['msg'].lower()}); write it with ModelSpec.to_dict"
            ) from None


def parse_model(text: str) -> ModelSpec:
    """Reads ``convnet``, ``convnet-d4-w64``, ``convnet:width=64,depth=3,norm=batch``, ``resnet18``, ``timm:NAME`` or the user's ``package.module:function``.

    Raises `OptionError`, one sentence, for an unknown name, option or value.
    """
    return ModelSpec(**_split(text))


def _split(text: str) -> dict[str, Any]:
    text = text.strip()
    head, _, tail = text.partition(":")
    name, pairs = _shorthand(head)
    if name not in MODELS:
        return {"name": text, "options": {}}
    pairs += [_pair(part, name) for part in tail.split(",") if part.strip()]
    options: dict[str, str] = {}
    for key, value in pairs:
        if key in options:
            raise OptionError(f"model {text!r} gives {key} twice, as {options[key]} and {value}; give it once")
        options[key] = value
    return {"name": name, "options": options}


def _shorthand(head: str) -> tuple[str, list[tuple[str, str]]]:
    match = None if head in MODELS else _SHORTHAND.fullmatch(head)
    if match is None:
        return head, []
    return match["name"], [(_LETTERS[part[0]], part[1:]) for part in match["suffixes"][1:].split("-")]


def _pair(part: str, name: str) -> tuple[str, str]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or not key or not value:
        raise OptionError(f"options of {name} are written key=value, got {part.strip()!r}; write for example {name}:key=value,key=value")
    return key, value


def _checked_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if name not in MODELS:
        _check_factory(name, options)
        return {}
    kind = _TABLE[name][1]
    for key in options:
        if key not in kind.model_fields:
            raise OptionError(f"model {name} has no option {key!r}; {_known_options(key, kind.model_fields)}")
    try:
        return kind(**options).model_dump()
    except ValidationError as error:
        fault = error.errors()[0]
        raise OptionError(f"option {fault['loc'][0]} of model {name}: {_lower_first(fault['msg'])}, got {fault['input']!r}") from None


def _check_factory(name: str, options: dict[str, Any]) -> None:
    if name.partition(":")[0] == "timm":
        _check_timm(name, options)
        return
    if not _FACTORY.fullmatch(name):
        raise OptionError(f"unknown model {name!r}; {nearest(name, MODELS)}, timm:NAME, or package.module:function for your own")
    if options:
        raise OptionError(f"your own model {name!r} takes no options, got {sorted(options)}; fix them inside the function")


def _check_timm(name: str, options: dict[str, Any]) -> None:
    # a hub address (hf-hub:owner/name) would let timm fetch what a file names
    if not _TIMM.fullmatch(name):
        raise OptionError(f"a timm model is written timm:NAME with a name of timm's own list, got {name!r}; write for example timm:resnet10t")
    if options:
        raise OptionError(f"{name} takes no options, got {sorted(options)}; wrap timm in your own module:function to set them")


def _known_options(key: str, fields: Iterable[str]) -> str:
    return nearest(key, fields) if list(fields) else "it takes none"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
