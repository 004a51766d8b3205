"""Curvature of a network's cross-entropy on given images as products and as samples for each image: Hessian, generalized Gauss-Newton, empirical Fisher.

With logits z = f(theta, x), probabilities p = softmax(z) and label row y of sum s, the loss of an image is ``l = -sum_k y_k log p_k``, and over n images
``L = 1/n sum_i l_i``. Then

- the generalized Gauss-Newton (GGN) is ``G = 1/n sum_i s_i J_i^T (diag p_i - p_i p_i^T) J_i`` with J = dz/dtheta, which for rows that sum to one is the
  Fisher information matrix of the model (Schraudolph 2002; Martens 2020, arXiv 1412.1193);
- the Hessian is ``H = G + R`` with ``R = 1/n sum_i sum_k (s_i p_ik - y_ik) d2 z_ik / dtheta2``;
- the empirical Fisher is ``E = 1/n sum_i g_i g_i^T`` with g_i the gradient of l_i under the given, possibly soft, labels.

Networks are in evaluation mode, where an image's loss does not depend on the other images.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from limbeck.analyze.trace import rademacher
from limbeck.train.network import Network, State


def chunk_for(network: Network, device: torch.device) -> int:
    """Images whose gradients are held at once: 4 million numbers on a CPU, 400 million on a GPU."""
    most, room = (64, 4_000_000) if device.type == "cpu" else (1024, 400_000_000)
    return max(1, min(most, room // network.parameter_count))


class Curvature:
    """The loss of a network at `state` on n images with label rows, in the dtype and on the device of the state.

    Vectors are rows [R, P] of all trained parameters in the network's order. Images pass in chunks of `chunk`; a product holds the activations of one chunk and
    costs about four gradients (Hessian), two (GGN) or three (empirical Fisher).
    """

    def __init__(self, network: Network, state: State, images: Float[Tensor, "n C H W"], labels: Float[Tensor, "n K"], *, chunk: int = 64) -> None:
        self._module = network.module
        self._parameters = {name: state[name] for name in network.parameter_names}
        self._buffers = {name: tensor for name, tensor in state.items() if name not in self._parameters}
        self._images, self._labels, self._chunk = images, labels, chunk
        self.like = next(iter(self._parameters.values()))
        self.dimension = sum(tensor.numel() for tensor in self._parameters.values())

    def __len__(self) -> int:
        return len(self._images)

    @property
    def factor_size(self) -> int:
        """Numbers that `ggn_factor` would hold."""
        return self._labels.numel() * self.dimension

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """The loss of each image."""
        with torch.no_grad():
            return torch.cat([_losses(self._logits(self._parameters, images), labels) for images, labels in self._pieces()])

    def hessian(self, rows: Float[Tensor, "R P"]) -> Float[Tensor, "R P"]:
        """Rows times H, one at a time: the gradient of ``<grad L, v>``."""

        def loss(parameters: State, images: Tensor, labels: Tensor) -> Tensor:
            return _losses(self._logits(parameters, images), labels).sum()

        return self._each(
            rows, lambda vector, images, labels: _hessian_product(lambda parameters: loss(parameters, images, labels), self._parameters, vector)
        )

    def ggn(self, rows: Float[Tensor, "R P"]) -> Float[Tensor, "R P"]:
        """Rows times G, one at a time: forward to logits, through the curvature of the softmax, and back."""

        def product(vector: State, images: Tensor, labels: Tensor) -> State:
            logits, moved = jvp(lambda parameters: self._logits(parameters, images), (self._parameters,), (vector,))  # type: ignore[misc]
            probabilities = logits.softmax(1)
            mean = (probabilities * moved).sum(1, keepdim=True)
            pulled = labels.sum(1, keepdim=True) * probabilities * (moved - mean)
            back: State = vjp(lambda parameters: self._logits(parameters, images), self._parameters)[1](pulled)[0]
            return back

        return self._each(rows, product)

    def empirical_fisher(self, rows: Float[Tensor, "R P"]) -> Float[Tensor, "R P"]:
        """Rows times E, from the gradients of the images."""
        total = torch.zeros_like(rows)
        for gradients in self.gradients():
            total += (rows @ gradients.T) @ gradients
        return total / len(self)

    def gradients(self) -> Iterator[Float[Tensor, "b P"]]:
        """The gradient of each image's loss, chunk by chunk."""
        for images, labels in self._pieces():
            yield self._pull(images, lambda logits, label: _losses(logits[None], label[None])[0], labels)

    def remainder_samples(self, generator: torch.Generator) -> Float[Tensor, " n"]:
        """``v_i^T R_i v_i`` of each image with signs v_i of its own: unbiased for ``tr R_i``.

        A vector for each image costs about what one for all of them costs, and the errors of images average out instead of adding up.
        """
        parts = []
        for images, labels in self._pieces():
            signs = rademacher(len(images), self.dimension, generator, self.like)
            parts.append(vmap(self._remainder)(self._split(signs), images, labels))
        return torch.cat(parts)

    def ggn_samples(self, generator: torch.Generator) -> Float[Tensor, " n"]:
        """``||J_i^T B_i u_i||^2`` of each image with K signs u_i of its own, where ``B_i = sqrt(s_i) (diag sqrt(p_i) - p_i sqrt(p_i)^T)``, so that
        ``B_i B_i^T = s_i (diag p_i - p_i p_i^T)``: unbiased for ``tr G_i``, for the cost of a gradient."""

        parts = []
        for images, labels in self._pieces():
            signs = rademacher(len(images), labels.shape[1], generator, self.like)
            parts.append(self._pull(images, _along_root, signs, labels).square().sum(1))
        return torch.cat(parts)

    def ggn_factor(self) -> Float[Tensor, "nK P"]:
        """Rows a with ``G = 1/n sum a^T a``: ``J_i^T B_i e_k`` of every image and class, for the cost of K gradients of each image."""
        units = torch.eye(self._labels.shape[1], dtype=self.like.dtype, device=self.like.device)
        rows = [self._pull(images, _along_root, unit.expand(len(images), len(units)), labels) for images, labels in self._pieces() for unit in units]
        return torch.cat(rows)

    def fisher_samples(self) -> Float[Tensor, " n"]:
        """``||g_i||^2`` of each image, whose mean is ``tr E`` exactly."""
        return torch.cat([gradients.square().sum(1) for gradients in self.gradients()])

    def _remainder(self, vector: State, image: Tensor, label: Tensor) -> Tensor:
        def weighted(parameters: State) -> Tensor:
            logits = self._logits(parameters, image[None])[0]
            weights = label.sum() * logits.detach().softmax(0) - label
            return (weights * logits).sum()

        return _inner(_hessian_product(weighted, self._parameters, vector), vector)

    def _pull(self, images: Tensor, value: Callable[..., Tensor], *given: Tensor) -> Float[Tensor, "b P"]:
        """The gradient in the parameters, flat, of ``value(logits, ...)`` of every image."""

        def one(parameters: State, image: Tensor, *rest: Tensor) -> Tensor:
            return value(self._logits(parameters, image[None])[0], *rest)

        found = vmap(grad(one), in_dims=(None, 0, *(0 for _ in given)))(self._parameters, images, *given)
        return torch.cat([found[name].flatten(1) for name in self._parameters], 1)

    def _each(self, rows: Tensor, product: Callable[[State, Tensor, Tensor], State]) -> Tensor:
        """Each row's product, summed over chunks and divided by n."""
        vectors = [{name: tensor[i] for name, tensor in self._split(rows).items()} for i in range(len(rows))]
        total = torch.zeros_like(rows)
        for images, labels in self._pieces():
            for row, vector in zip(total, vectors, strict=True):
                found = product(vector, images, labels)
                row += torch.cat([found[name].flatten() for name in self._parameters])
        return total / len(self)

    def _split(self, rows: Float[Tensor, "R P"]) -> State:
        parts = rows.split([tensor.numel() for tensor in self._parameters.values()], 1)
        return {name: part.unflatten(1, tensor.shape or (1,)) for (name, tensor), part in zip(self._parameters.items(), parts, strict=True)}

    def _logits(self, parameters: State, images: Tensor) -> Tensor:
        self._module.eval()
        logits: Tensor = functional_call(self._module, {**parameters, **self._buffers}, (images,))
        return logits

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self._images.split(self._chunk), self._labels.split(self._chunk), strict=True)


def _losses(logits: Float[Tensor, "b K"], labels: Float[Tensor, "b K"]) -> Float[Tensor, " b"]:
    return -(labels * logits.log_softmax(1)).sum(1)


def _along_root(logits: Tensor, direction: Tensor, label: Tensor) -> Tensor:
    """``<B u, z>`` for a direction u, with B as in `Curvature.ggn_samples` taken for fixed."""
    probabilities = logits.detach().softmax(0)
    root = probabilities.sqrt() * direction
    return label.sum().clamp_min(0).sqrt() * ((root - probabilities * root.sum()) * logits).sum()


def _hessian_product(function: Callable[[State], Tensor], parameters: State, vector: State) -> State:
    """The gradient of ``<grad function, vector>``: reverse over reverse, which is faster here than forward over reverse (measured on ConvNets on a CPU)."""
    product: State = grad(lambda at: _inner(grad(function)(at), vector))(parameters)
    return product


def _inner(left: State, right: State) -> Tensor:
    parts: Any = [(left[name] * right[name]).sum() for name in left]
    return torch.stack(parts).sum()
