"""Seeded construction of models, from the table or from the user's own factory."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import OptionError
from limbeck.models.spec import MODELS, ModelSpec


def build(spec: ModelSpec, *, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> nn.Module:
    """A freshly initialized float32 model on the CPU that maps images [B, C, H, W] to logits [B, `classes`]; `shape` is (C, H, W).

    A model of the table is initialized from `generator` alone, layer by layer in definition order, with PyTorch's default distributions: weights and
    biases of convolutions and linear layers U(-b, b), b = 1/sqrt(fan_in); normalization scale 1, shift 0, running mean 0 and variance 1; and embeddings
    N(0, 1/width).

    The user's own ``package.module:function`` is imported (the working directory is searched too) and called as ``function((C, H, W), classes)``;
    it returns a ``torch.nn.Module``. It may use PyTorch's global random state, which is seeded from `generator` for the call and put back after it.
    Its output for one zero image must have shape [1, `classes`].

    ``timm:NAME`` is built by the timm package, without pretrained weights, in the same way (see `limbeck.models.timm.TimmClassifier`).

    None of these consumes global random state. Raises `OptionError` for impossible sizes and for a factory that cannot be imported, fails, or returns
    something else.
    """
    if min(shape) < 1 or classes < 1:
        raise OptionError(f"a model needs a positive image shape (C, H, W) and at least 1 class, got {shape} and {classes}")
    if spec.is_factory:
        return _build_factory(spec.name, shape, classes, generator)
    if spec.is_timm:
        return _build_timm(spec.name, shape, classes, generator)
    with torch.device("meta"):
        model: nn.Module = MODELS[spec.name](shape, classes, spec.typed_options())
    model.to_empty(device="cpu")
    initialize(model, generator)
    return model


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter of `model` anew, in place, as `build` says. Raises `TypeError` for a layer whose default it does not know."""
    for layer in model.modules():
        match layer:
            case nn.Conv2d() | nn.Linear():
                # He's uniform rule with a = sqrt(5), PyTorch's default, comes to this bound for weight and bias alike.
                bound = layer.weight[0].numel() ** -0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            case nn.Embedding():
                # unlike PyTorch's N(0, 1): an embedded token has about unit length, whatever the width
                layer.weight.normal_(0, layer.embedding_dim**-0.5, generator=generator)
            case nn.GroupNorm() | nn.LayerNorm() | nn.BatchNorm2d():
                layer.reset_parameters()
            case _ if [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                raise TypeError(f"no default initialization is known for {type(layer).__name__}; add it to limbeck.models.construct.initialize")


def _build_factory(name: str, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> nn.Module:
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with _seeded_global_state(seed):
        factory = _import_factory(name)
        try:
            model = factory(shape, classes)
        except Exception as error:
            raise OptionError(
                f"model factory {name!r} failed when called with {shape}, {classes} ({_describe(error)}); it takes ((C, H, W), classes) and "
                "returns a torch.nn.Module"
            ) from error
        if not isinstance(model, nn.Module):
            raise OptionError(f"model factory {name!r} returned an object of type {type(model).__name__}; it must return a torch.nn.Module")
        _check_output(name, model, shape, classes)
    return model


def _build_timm(name: str, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> nn.Module:
    from limbeck.models.timm import TimmClassifier

    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with _seeded_global_state(seed):
        model = TimmClassifier(name.partition(":")[2], shape, classes)
    return model


def _import_factory(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        with _working_directory_importable():
            target: Any = import_module(module)
            for part in attribute.split("."):
                target = getattr(target, part)
    except Exception as error:
        raise OptionError(f"cannot import model factory {name!r} ({_describe(error)}); give package.module:function, importable from here") from error
    if not callable(target):
        raise OptionError(f"model factory {name!r} has type {type(target).__name__}, which cannot be called; name a function or class")
    factory: Callable[..., Any] = target
    return factory


@torch.no_grad()
def _check_output(name: str, model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    parameter = next(model.parameters(), torch.empty(0))
    modes = {module: module.training for module in model.modules()}
    wanted = f"the model of {name!r} must map images [B, {', '.join(map(str, shape))}] to logits [B, {classes}]"
    try:
        logits = model.eval()(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))
    except Exception as error:
        raise OptionError(f"{wanted}, but failed on one zero image ({_describe(error)})") from error
    finally:
        for module, training in modes.items():
            module.training = training
    got = list(logits.shape) if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
    if got != [1, classes]:
        raise OptionError(f"{wanted}, got {got} for one image; return the logits alone, one per class")


@contextmanager
def _seeded_global_state(seed: int) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also reseed accelerators that are not forked above.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    # A console script does not have the working directory on its path, and that is where a user's model.py lies.
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _describe(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
