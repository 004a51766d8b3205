import pytest
import torch

from limbeck.train.updates import Tensors, adam_step, sgd_step

SHAPES = {"weight": (3, 4), "bias": (3,)}


def draws(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def reference(kind: type[torch.optim.Optimizer], steps: int, **options: float) -> Tensors:
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in draws(0).items()}
    optimizer = kind(parameters.values(), **options)  # type: ignore[call-arg]
    for step in range(1, steps + 1):
        for name, gradient in draws(step).items():
            parameters[name].grad = gradient
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def close(one: Tensors, other: Tensors) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-14, atol=1e-15) for name in SHAPES)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.1}])
def test_sgd_is_that_of_torch(options: dict[str, float]) -> None:
    parameters, slots = draws(0), Tensors()
    for step in range(1, 6):
        parameters, slots = sgd_step(parameters, draws(step), slots, lr=0.1, **options)
    assert close(parameters, reference(torch.optim.SGD, 5, lr=0.1, **options))
    assert set(slots) == ({f"{name}.momentum" for name in SHAPES} if "momentum" in options else set())


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_adam_is_that_of_torch(options: dict[str, object]) -> None:
    parameters, slots = draws(0), Tensors()
    for step in range(1, 6):
        parameters, slots = adam_step(parameters, draws(step), slots, lr=0.1, number=step, **options)  # type: ignore[arg-type]
    assert close(parameters, reference(torch.optim.Adam, 5, lr=0.1, **options))  # type: ignore[arg-type]
    assert set(slots) == {f"{name}.{slot}" for name in SHAPES for slot in ("mean", "square")}


def test_resting_slots_are_those_of_a_first_step() -> None:
    still = {f"{name}.momentum": torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    assert close(sgd_step(draws(0), draws(1), still, lr=0.1, momentum=0.5)[0], sgd_step(draws(0), draws(1), {}, lr=0.1, momentum=0.5)[0])


def test_nothing_is_changed_in_place() -> None:
    given = [draws(0), draws(1), {f"{name}.momentum": tensor for name, tensor in draws(2).items()}]
    before = [{name: tensor.clone() for name, tensor in part.items()} for part in given]
    sgd_step(*given, lr=0.1, momentum=0.9, weight_decay=0.1)
    adam = {f"{name}.{slot}": tensor.abs() for slot in ("mean", "square") for name, tensor in draws(3).items()}
    kept = {name: tensor.clone() for name, tensor in adam.items()}
    adam_step(given[0], given[1], adam, lr=0.1, number=3)
    assert all(torch.equal(part[name], copy[name]) for part, copy in zip([*given, adam], [*before, kept], strict=True) for name in part)


def test_every_argument_can_be_differentiated() -> None:
    def draw(seed: int) -> torch.Tensor:
        return torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).add(0.1).requires_grad_()

    def sgd(parameter: torch.Tensor, gradient: torch.Tensor, velocity: torch.Tensor, lr: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved, slots = sgd_step({"p": parameter}, {"p": gradient}, {"p.momentum": velocity}, lr=lr[0], momentum=0.9, weight_decay=0.1)
        return moved["p"], slots["p.momentum"]

    def adam(parameter: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, lr: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved, slots = adam_step({"p": parameter}, {"p": gradient}, {"p.mean": mean, "p.square": square}, lr=lr[0], number=3, weight_decay=0.1)
        return moved["p"], slots["p.mean"], slots["p.square"]

    assert torch.autograd.gradcheck(sgd, tuple(map(draw, range(4))))
    assert torch.autograd.gradcheck(adam, tuple(map(draw, range(5))))


def test_adam_has_a_finite_derivative_where_no_gradient_ever_came() -> None:
    gradient = torch.zeros(2, requires_grad=True)
    moved, _ = adam_step({"p": torch.ones(2)}, {"p": gradient}, {}, lr=0.1, number=1)
    assert torch.equal(moved["p"], torch.ones(2))
    (derivative,) = torch.autograd.grad(moved["p"].sum(), gradient)
    assert bool(derivative.isfinite().all())
