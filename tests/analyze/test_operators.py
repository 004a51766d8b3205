import pytest
import torch
from tests.small import network
from torch import Tensor

from limbeck.analyze.operators import Curvature, _hessian_product
from limbeck.streams import Streams
from limbeck.train.network import Network, State


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(model: str, count: int = 6, classes: int = 3, *, soft: bool = True) -> tuple[Network, State, Tensor, Tensor]:
    net = network(model, classes)
    generator = rng(4)
    # weights of unit size: at the initialization of the norms' scales much of the curvature would vanish
    state = {k: v.double() + 0.3 * torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in net.init(Streams(0)).items()}
    images = torch.randn(count, *net.shape, generator=generator, dtype=torch.float64)
    labels = torch.rand(count, classes, generator=generator, dtype=torch.float64)
    if not soft:
        labels = torch.nn.functional.one_hot(labels.argmax(1), classes).double()
    return net, state, images, labels


def dense(net: Network, state: State, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Explicit matrices by plain autograd: the Hessian of the loss, J^T L J over explicit Jacobians, and the outer products of explicit gradients."""
    flat = torch.cat([state[name].flatten() for name in net.parameter_names])

    def unflat(vector: Tensor) -> State:
        parts = vector.split([state[name].numel() for name in net.parameter_names])
        return {name: part.view_as(state[name]) for name, part in zip(net.parameter_names, parts, strict=True)}

    def logits(vector: Tensor) -> Tensor:
        return net.forward(unflat(vector), images)

    def losses(vector: Tensor) -> Tensor:
        return -(labels * logits(vector).log_softmax(1)).sum(1)

    jacobian, gradients = (torch.autograd.functional.jacobian(f, flat) for f in (logits, losses))
    p = logits(flat).softmax(1)
    inner = labels.sum(1)[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    each = jacobian.transpose(1, 2) @ inner @ jacobian
    hessians = [torch.autograd.functional.hessian(lambda vector, i=i: losses(vector)[i], flat) for i in range(len(images))]
    return {"hessians": torch.stack(hessians), "ggns": each, "fisher": gradients.T @ gradients / len(images)}  # type: ignore[list-item]


@pytest.mark.parametrize("model", ["softmax", "mlp:width=3,depth=1", "convnet-d1-w2"])
@pytest.mark.parametrize("soft", [True, False])
def test_products_match_explicit_matrices(model: str, soft: bool) -> None:
    net, state, images, labels = problem(model, soft=soft)
    curvature, exact = Curvature(net, state, images, labels, chunk=4), dense(net, state, images, labels)
    rows = torch.randn(3, curvature.dimension, generator=rng(1), dtype=torch.float64)
    torch.testing.assert_close(curvature.hessian(rows), rows @ exact["hessians"].mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(curvature.ggn(rows), rows @ exact["ggns"].mean(0), rtol=1e-9, atol=1e-9)
    factor = curvature.ggn_factor()
    torch.testing.assert_close(factor.T @ factor / len(images), exact["ggns"].mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(curvature.empirical_fisher(rows), rows @ exact["fisher"], rtol=1e-9, atol=1e-9)
    assert float(curvature.fisher_samples().mean()) == pytest.approx(float(exact["fisher"].trace()), rel=1e-10)


def test_samples_of_each_image_are_unbiased() -> None:
    """500 samples of each of three images, drawn in one pass over 500 copies of them."""
    net, state, images, labels = problem("convnet-d1-w2", count=3)
    exact = dense(net, state, images, labels)
    copies = Curvature(net, state, images.repeat(500, 1, 1, 1), labels.repeat(500, 1), chunk=300)
    ggn = exact["ggns"].diagonal(dim1=1, dim2=2).sum(1)
    remainder = exact["hessians"].diagonal(dim1=1, dim2=2).sum(1) - ggn
    assert float(remainder.abs().min()) > 0
    for draw, wanted in ((copies.ggn_samples, ggn), (copies.remainder_samples, remainder)):
        samples = draw(rng(2)).view(500, 3)
        assert bool(((samples.mean(0) - wanted).abs() < 4 * samples.std(0) / 500**0.5).all())


def test_the_ggn_is_the_fisher_information_of_the_model() -> None:
    """``E_{y ~ p} [grad log p_y grad log p_y^T]``, summed over every class that the model could say."""
    net, state, images, labels = problem("mlp:width=3,depth=1", soft=False)
    curvature = Curvature(net, state, images, labels)
    p = net.forward(state, images).softmax(1)
    fisher = torch.zeros(curvature.dimension, curvature.dimension, dtype=torch.float64)
    for k in range(3):
        every = torch.zeros_like(labels).index_fill(1, torch.tensor([k]), 1)
        gradients = torch.cat(list(Curvature(net, state, images, every).gradients()))
        fisher += gradients.T @ (p[:, k : k + 1] * gradients) / len(images)
    eye = torch.eye(curvature.dimension, dtype=torch.float64)
    torch.testing.assert_close(curvature.ggn(eye), fisher, rtol=1e-9, atol=1e-12)


def test_least_squares_of_a_linear_model_has_the_hessian_of_its_inputs() -> None:
    """``L = 1/2n sum ||x W - y||^2`` has ``H = X^T X / n (x) I``, whatever W and y are."""
    x, y, w = (torch.randn(*shape, generator=rng(2), dtype=torch.float64) for shape in ((6, 4), (6, 3), (4, 3)))
    eye = torch.eye(12, dtype=torch.float64).view(12, 4, 3)

    def loss(at: State) -> Tensor:
        return (x @ at["weight"] - y).square().sum() / 12

    rows = torch.stack([_hessian_product(loss, {"weight": w}, {"weight": row})["weight"].flatten() for row in eye])
    torch.testing.assert_close(rows, torch.kron(x.T @ x / 6, torch.eye(3, dtype=torch.float64)), rtol=1e-12, atol=1e-12)


def test_softmax_regression_at_zero_weights_has_a_known_fisher() -> None:
    """Probabilities are all 1/K, so ``H = G = (I/K - 11^T/K^2) (x) [X 1]^T [X 1] / n``."""
    net, state, images, labels = problem("softmax", soft=False)
    zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    curvature = Curvature(net, zero, images, labels)
    x = images.flatten(1)
    outer = torch.eye(3, dtype=torch.float64) / 3 - 1 / 9
    weights, biases = torch.kron(outer, x.T @ x / 6), outer
    cross = torch.kron(outer, x.mean(0)[:, None])
    wanted = torch.cat([torch.cat([weights, cross], 1), torch.cat([cross.T, biases], 1)])
    eye = torch.eye(curvature.dimension, dtype=torch.float64)
    torch.testing.assert_close(curvature.ggn(eye), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(curvature.hessian(eye), wanted, rtol=1e-10, atol=1e-12)


def test_without_norms_relu_networks_have_the_trace_of_their_fisher() -> None:
    """Their logits are linear in every single weight, so ``tr R = 0`` and ``tr H = tr G``."""
    net, state, images, labels = problem("mlp:width=4,depth=2", soft=False)
    exact = dense(net, state, images, labels)
    assert float(exact["hessians"].mean(0).trace()) == pytest.approx(float(exact["ggns"].mean(0).trace()), rel=1e-10)
    assert float((exact["hessians"] - exact["ggns"]).abs().max()) > 1e-3
    samples = Curvature(net, state, images, labels).remainder_samples(rng())
    assert float(samples.abs().max()) > 0


def test_images_and_chunks_do_not_mix() -> None:
    net, state, images, labels = problem("convnet-d1-w2")
    whole, cut = Curvature(net, state, images, labels, chunk=6), Curvature(net, state, images, labels, chunk=1)
    torch.testing.assert_close(whole.remainder_samples(rng(3)), cut.remainder_samples(rng(3)))
    torch.testing.assert_close(whole.ggn_samples(rng(3)), cut.ggn_samples(rng(3)))
    torch.testing.assert_close(whole.losses, cut.losses)
