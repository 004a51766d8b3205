import pytest
import torch
from tests.small import PLAN, network

from limbeck.data.augment import parse_augment
from limbeck.streams import Streams
from limbeck.train.second_order import Batch, BatchLoss, network_loss
from limbeck.train.updates import Tensors

IMAGES = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.rand(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
WANTED = ("parameters", "images", "labels")


def setting(model: str) -> tuple[Tensors, Tensors, Tensors]:
    """Parameters, a direction and buffers in float64."""
    net = network(model)
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in net.init(Streams(0)).items()}
    parameters = {name: state[name] for name in net.parameter_names}
    generator = torch.Generator().manual_seed(2)
    direction = {name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in parameters.items()}
    return parameters, direction, {name: tensor for name, tensor in state.items() if name not in parameters}


@pytest.mark.parametrize("model", ["mlp:width=5,depth=1", "convnet-d1-w4", "convnet:depth=1,width=4,norm=batch"])
def test_derivatives_are_those_of_two_backward_passes(model: str) -> None:
    parameters, direction, buffers = setting(model)
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    loss = BatchLoss.of_network(network(model), buffers, PLAN.model_copy(update={"chunk": 3}), *WANTED)
    value, gradients = loss.gradient(parameters, IMAGES, LABELS)
    pulled = loss.along(parameters, IMAGES, LABELS, direction)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    images, labels = IMAGES.clone().requires_grad_(), LABELS.clone().requires_grad_()
    logits = torch.func.functional_call(network(model).module.train(), leaves | {name: tensor.clone() for name, tensor in buffers.items()}, (images,))
    mean = torch.nn.functional.cross_entropy(logits, labels)
    followed = torch.autograd.grad(mean, list(leaves.values()), create_graph=True)
    along = sum((one * other).sum() for one, other in zip(followed, direction.values(), strict=True))
    *by_parameters, by_images, by_labels = torch.autograd.grad(along, [*leaves.values(), images, labels])

    assert float(value) == pytest.approx(float(mean.detach()), rel=1e-12)
    for name, first, second in zip(parameters, followed, by_parameters, strict=True):
        torch.testing.assert_close(gradients[name], first.detach(), rtol=1e-10, atol=1e-12)
        assert pulled.parameters is not None
        torch.testing.assert_close(pulled.parameters[name], second, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pulled.images, by_images, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pulled.labels, by_labels, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(buffers[name], before[name]) for name in buffers)


@pytest.mark.parametrize("wanted", [("images",), ("labels", "parameters"), ("parameters",)])
def test_only_what_is_wanted_comes_back(wanted: tuple[str, ...]) -> None:
    parameters, direction, buffers = setting("softmax")
    whole = BatchLoss.of_network(network(), buffers, PLAN, *WANTED).along(parameters, IMAGES, LABELS, direction)
    some = BatchLoss.of_network(network(), buffers, PLAN, *wanted).along(parameters, IMAGES, LABELS, direction)
    for name in WANTED:
        found, expected = getattr(some, name), getattr(whole, name)
        if name not in wanted:
            assert found is None
        elif name == "parameters":
            assert all(torch.equal(found[key], expected[key]) for key in parameters)
        else:
            assert torch.equal(found, expected)


def test_softmax_regression_at_zero_weights_has_the_known_hessian() -> None:
    """H = (diag(1/K) - 1/K^2) (x) mean x x^T, with x extended by 1 for the bias."""
    loss = BatchLoss.of_function(lambda *given: network_loss(network(), "cross-entropy", "float32", "cpu")(*given, {}), "parameters")
    parameters, direction, _ = setting("softmax")
    pulled = loss.along({name: torch.zeros_like(tensor) for name, tensor in parameters.items()}, IMAGES, LABELS, direction)
    inputs = torch.cat([IMAGES.flatten(1), torch.ones(7, 1, dtype=torch.float64)], 1)
    vector = torch.cat([direction["head.weight"], direction["head.bias"][:, None]], 1)
    middle = torch.full((2, 2), -0.25, dtype=torch.float64) + 0.5 * torch.eye(2, dtype=torch.float64)
    expected = middle @ vector @ (inputs.T @ inputs / 7)
    assert pulled.parameters is not None
    torch.testing.assert_close(pulled.parameters["head.weight"], expected[:, :-1])
    torch.testing.assert_close(pulled.parameters["head.bias"], expected[:, -1])


def test_a_batch_is_looked_at_again_in_the_same_way() -> None:
    augment = parse_augment("dsa:crop_scale,mode=multiple")
    assert augment is not None
    rows = torch.tensor([5, 2, 3])
    batch = Batch(rows, augment, augment.draw(3, (1, 8, 8), torch.Generator().manual_seed(3)))
    assert torch.equal(batch.look(IMAGES), augment.apply(IMAGES[rows], batch.params))
    assert torch.equal(batch.labels(LABELS), LABELS[rows])
    by_shown = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    pulled = batch.pull(IMAGES, by_shown)
    step = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    # these augmentations are linear in the pixels
    assert float((pulled * step).sum()) == pytest.approx(float((by_shown * batch.look(step)).sum()), rel=1e-10)
    assert not pulled[[0, 1, 4, 6]].any()


def test_a_compiled_plan_gives_the_same_derivatives() -> None:
    model = "mlp:width=4,depth=1"
    parameters, direction, buffers = setting(model)
    single = [{name: tensor.float() for name, tensor in part.items()} for part in (parameters, direction)]
    found = {}
    for strategy in ("eager", "compiled"):
        plan = PLAN.model_copy(update={"chunk": 3, "strategy": strategy})
        loss = BatchLoss.of_network(network(model), buffers, plan, "parameters", "images", usual=6)
        pulled = loss.along(single[0], IMAGES.float(), LABELS.float(), single[1])  # pieces of 3, 3 and 1: the last is not compiled
        found[strategy] = loss.gradient(single[0], IMAGES.float(), LABELS.float())[1], pulled.parameters, pulled.images
    torch.testing.assert_close(found["compiled"], found["eager"], rtol=1e-4, atol=1e-6)
