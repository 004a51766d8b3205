"""A user's own trained network as an expert: a limbeck snapshot, a safetensors file, or a PyTorch state dict read without unpickling objects."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck import store
from limbeck.errors import FileFormatError
from limbeck.experts.expert import KIND, Expert
from limbeck.train.network import Network
from limbeck.types.pixels import PixelSpace


def load_expert(path: Path, network: Network, pixels: PixelSpace) -> Expert:
    """Reads a checkpoint for `network`.

    A limbeck snapshot brings its own pixel space; any other file is taken to expect images in `pixels`. Accepts a bare state dict or one under
    ``state_dict``, ``model_state_dict`` or ``model``, with or without ``module.`` prefixes. Raises `FileFormatError` for files that are not checkpoints and for
    tensors that do not fit the architecture, naming the first that differs.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"no such checkpoint: {str(path)!r}; check the path")
    if path.suffix == ".safetensors":
        try:
            store.load_header(path, KIND)
        except FileFormatError:
            pass
        else:
            expert = Expert.load(path)
            if (expert.network.shape, expert.network.classes) != (network.shape, network.classes):
                raise FileFormatError(
                    f"{str(path)!r} is an expert for {expert.network.classes} classes of {_shape(expert.network.shape)} images; "
                    f"wanted {network.classes} classes of {_shape(network.shape)}; use an expert of this data"
                )
            if expert.network.spec.is_factory and expert.network.spec != network.spec:
                raise FileFormatError(
                    f"{str(path)!r} asks to run the code {str(expert.network.spec)!r}; use --model {expert.network.spec} if you trust it"
                )
            return replace(expert, state=_fit_names(expert.state, expert.network, path))
    state = _fit_names(_read(path), network, path)
    return Expert(network, state, pixels, -1, store.content_digest(network.spec.to_dict(), state))


def expert_from_module(module: nn.Module, network: Network, pixels: PixelSpace) -> Expert:
    """Any torch module whose state dict fits `network` as an expert."""
    state = _fit_names(dict(module.state_dict()), network, Path(type(module).__name__))
    return Expert(network, state, pixels, -1, store.content_digest(network.spec.to_dict(), state))


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # the safe unpickler fails on damaged files with whatever its damaged instructions run into
        first = str(problem).strip().splitlines()[0][:160] if str(problem).strip() else type(problem).__name__
        raise FileFormatError(
            f"{str(path)!r} is not a checkpoint that can be read safely ({first}); save model.state_dict() or a .safetensors file"
        ) from None
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise FileFormatError(f"{str(path)!r} does not hold a state dict of tensors; save model.state_dict() or a .safetensors file")
    return content


def _fit_names(found: Mapping[str, Tensor], network: Network, path: Path) -> dict[str, Tensor]:
    wanted = network.module.state_dict()
    state = {name.removeprefix("module."): tensor.detach().cpu().clone() for name, tensor in found.items()}
    for name, tensor in wanted.items():
        if name not in state:
            raise FileFormatError(
                f"{str(path)!r} lacks the tensor {name!r} of {network.spec}; use a checkpoint of that architecture or give its --model"
            )
        if state[name].shape != tensor.shape:
            raise FileFormatError(
                f"{str(path)!r}: tensor {name!r} has shape {list(state[name].shape)}, wanted {list(tensor.shape)} for {network.spec} with "
                f"{network.classes} classes; use a checkpoint of that architecture or give its --model"
            )
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise FileFormatError(
            f"{str(path)!r} has the tensor {extra[0]!r} that {network.spec} lacks; use a checkpoint of that architecture or give its --model"
        )
    return {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}


def _shape(shape: tuple[int, int, int]) -> str:
    return "x".join(str(side) for side in shape)
