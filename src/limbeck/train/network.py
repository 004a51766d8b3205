"""A network as a function of its parameters, so that one module serves any number of students, snapshots and experts."""

import hashlib
import inspect
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import store
from limbeck.errors import OptionError
from limbeck.models import ModelSpec, build
from limbeck.streams import Streams
from limbeck.train.losses import make_loss

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """An architecture at an image shape and a number of classes."""

    spec: ModelSpec
    shape: tuple[int, int, int]
    classes: int

    def init(self, streams: Streams) -> State:
        """Freshly initialized parameters and buffers from the stream ``init``. The same stream gives the same bytes."""
        module = build(self.spec, shape=self.shape, classes=self.classes, generator=streams.torch("init"))
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @property
    def module(self) -> nn.Module:
        """The shared template; its own weights mean nothing."""
        return self.template(0)

    def template(self, lane: int) -> nn.Module:
        """A template of its own for each lane of a plan: a call fills the module with parameters, so two at a time must not use the same."""
        return _template(self, lane)

    @property
    def identity(self) -> dict[str, Any]:
        """What a cached result of this network hangs on, as plain JSON: the specification, and for code of others (a user's factory, timm) its file or
        version and the initial state."""
        task: dict[str, Any] = self.spec.to_dict()
        if self.spec.is_factory:
            source = inspect.getsourcefile(import_module(self.spec.name.partition(":")[0]))
            code = Path(source).read_bytes() if source else b""
            task["code"] = [hashlib.sha256(code).hexdigest(), store.content_digest({}, self.module.state_dict())]
        elif self.spec.is_timm:
            task["code"] = [store.content_digest({}, self.module.state_dict()), version("timm")]
        return task

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the trained tensors of a state; the others are buffers."""
        return tuple(name for name, _ in self.module.named_parameters())

    @property
    def parameter_count(self) -> int:
        """Number of trained values P."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def has_batch_statistics(self) -> bool:
        """Whether an image's output in training depends on the rest of its batch, so that a batch must not be split."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.module.modules())

    def forward(self, state: Mapping[str, Tensor], images: Float[Tensor, "B C H W"], *, training: bool = False) -> Float[Tensor, "B K"]:
        """Logits under the given state. In training, batch statistics in `state` are updated in place."""
        module = self.module
        module.train(training)
        logits = torch.func.functional_call(module, dict(state), (images,))
        assert isinstance(logits, Tensor)
        return logits

    def features(self, state: Mapping[str, Tensor], images: Float[Tensor, "B C H W"], *, training: bool = False) -> Float[Tensor, "B F"]:
        """The embedding that the head sees (`limbeck.models.classifier.Classifier.features`); a user's own module needs a `features` method for it."""
        module = self.module
        if not hasattr(module, "features"):
            raise OptionError(f"{self.spec} has no `features` method, so it gives no embedding; add one, or use a model of limbeck's table")
        module.train(training)
        embedding = torch.func.functional_call(_Features(module), {f"model.{name}": tensor for name, tensor in state.items()}, (images,))
        assert isinstance(embedding, Tensor)
        return embedding

    def loaded(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A module of its own that holds the state: what a user of plain PyTorch wants."""
        module = build(self.spec, shape=self.shape, classes=self.classes, generator=torch.Generator().manual_seed(0))
        module.load_state_dict(dict(state))
        return module.eval()

    @property
    def can_stack(self) -> bool:
        """Whether several can train as one program: not where a layer draws random numbers of its own, nor a user's or another library's module, which may."""
        drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in self.module.modules())
        return not drops and not self.spec.is_factory and not self.spec.name.startswith("timm")

    def activation_values(self) -> int:
        """Numbers that the layers put out in one forward pass of one image: what a backward pass keeps, up to a small factor."""
        return _activation_values(self)

    def flops(self) -> int:
        """Multiply-adds counted twice, of one forward pass of one image."""
        return _flops(self)


class _Features(nn.Module):
    """A classifier whose forward pass stops at the embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.features(images)  # type: ignore[operator]
        return embedding


@lru_cache(maxsize=64)
def _template(network: Network, lane: int) -> nn.Module:
    return build(network.spec, shape=network.shape, classes=network.classes, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=64)
def _flops(network: Network) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.module.eval()(torch.zeros(1, *network.shape))
    return int(counter.get_total_flops())


@lru_cache(maxsize=64)
def _activation_values(network: Network) -> int:
    counts: list[int] = []
    leaves = [module for module in network.module.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda module, given, out: counts.append(out.numel() if isinstance(out, Tensor) else 0)) for leaf in leaves]
    with torch.no_grad():
        network.module.eval()(torch.zeros(1, *network.shape))
    for hook in hooks:
        hook.remove()
    return sum(counts)


LossOfState = Callable[..., Tensor]


@lru_cache(maxsize=64)
def loss_of_state(
    network: Network, loss: str, temperature: float, precision: str, device_type: str, *, stacked: bool = False, compiled: bool = False, lane: int = 0
) -> LossOfState:
    """``(state, images [B, C, H, W], labels [B, K]) -> summed loss`` in training mode, or with a fourth argument, weights [B], the weighted sum. With bfloat16 the
    network runs under autocast and the loss in float32.

    `stacked` maps it over a leading axis of all of them, which gives one loss for each model. `compiled` compiles it, once for each batch shape; without a C++
    compiler it stays eager, with one warning. Functions of different lanes may run at the same time.
    """
    criterion, narrow, module = make_loss(loss, temperature), precision == "bfloat16", network.template(lane)

    def summed_loss(state: State, images: Tensor, labels: Tensor, *weights: Tensor) -> Tensor:
        module.train()
        with torch.autocast(device_type, torch.bfloat16, enabled=narrow):
            logits = torch.func.functional_call(module, state, (images,))
        return criterion(logits.float(), labels, *weights)

    mapped = torch.func.vmap(summed_loss) if stacked else summed_loss
    if not compiled or not can_compile(device_type):
        return mapped
    from torch._dynamo import config

    config.recompile_limit = max(1024, config.recompile_limit)  # of one function's code, which all networks, shapes and lanes share
    config.accumulated_recompile_limit = max(4096, config.accumulated_recompile_limit)
    program = torch.compile(mapped, dynamic=False)
    if stacked:
        return program
    return lambda state, images, *rows: program(state, images.contiguous(memory_format=torch.channels_last), *rows)


@cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on a CPU, Triton on a GPU. Warns once where it has not."""
    missing = "Triton" if device_type == "cuda" and not find_spec("triton") else "C++ compiler" if compiler() is None else None
    if missing:
        warnings.warn(f"no {missing} found: training runs uncompiled, with the same results but slower", RuntimeWarning, stacklevel=2)
    return missing is None


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
