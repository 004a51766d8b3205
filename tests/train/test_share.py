import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as group
from tests.small import PLAN, gaussians, network

from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.experts.trajectory import train_expert
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.share import Share
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


def together(folder: Path, work: Callable[[int, Share], object], size: int = 2) -> None:
    """Runs `work` in `size` processes that can add up tensors with gloo."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                group.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
                work(rank, Share.of_process_group())
                group.barrier()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size


@pytest.mark.parametrize(
    ("model", "recipe", "plan"),
    [
        (
            "convnet:depth=2,width=4",
            Recipe(lr=0.1, batch_size=16, epochs=3, augment="dsa"),
            PLAN,
        ),  # 50 images: the last batch has 2, one for each worker
        # no biases before a norm here: their gradient is 0, whose rounding errors Adam would blow up to whole steps
        (
            "mlp:width=8,depth=1",
            Recipe(optimizer="adam", lr=0.01, batch_size=7, steps=20),
            ExecutionPlan(chunk=3, threads=1),
        ),  # a last batch of 1: a worker has none
        ("convnet:depth=2,width=4", Recipe(lr=0.1, batch_size=50, steps=6, shuffle=False, loss="mse"), ExecutionPlan(models=4, chunk=64, threads=1)),
    ],
)
def test_two_workers_train_the_network_that_one_trains(tmp_path: Path, model: str, recipe: Recipe, plan: ExecutionPlan) -> None:
    examples, net, streams = Examples.of_table(gaussians(25), PixelSpace()), network(model), Streams(0)["shared"]

    def train(share: Share | None = None) -> dict[str, torch.Tensor]:
        return fit(net, net.init(streams), examples, recipe, streams, plan, share=share).network

    together(tmp_path, lambda rank, share: torch.save({name: tensor.detach() for name, tensor in train(share).items()}, tmp_path / f"{rank}.pt"))
    alone = train()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=2e-5)


def test_an_expert_of_two_workers_is_the_expert_of_one_and_resumes(tmp_path: Path) -> None:
    train, validation, net = gaussians(30), gaussians(10, seed=3), network("mlp:width=8,depth=1")
    recipe = Recipe(lr=0.05, batch_size=16, epochs=4)

    def expert(share: Share | None, folder: str) -> list[float | None]:
        made = train_expert(net, recipe, train, validation, PixelSpace(), seed=0, plan=PLAN, cache=Cache(tmp_path / folder), share=share)
        return [snapshot.loss for snapshot in made.snapshots]

    together(tmp_path, lambda rank, share: expert(share, "two"))
    two = expert(Share(0, 2, lambda tensors: pytest.fail("the expert was finished")), "two")
    assert two == pytest.approx(expert(None, "one"), abs=1e-4)


def test_what_depends_on_the_rest_of_a_batch_is_refused() -> None:
    share, examples = Share(0, 2, lambda tensors: None), Examples.of_table(gaussians(5), PixelSpace())
    with pytest.raises(OptionError, match="training on several workers needs a network without batch statistics"):
        share.check(network("convnet:depth=1,width=2,norm=batch"), None)
    net = network()
    with pytest.raises(OptionError, match="needs an augmentation that shows one image at a time, got cutmix"):
        fit(net, net.init(Streams(0)), examples, Recipe(steps=1, augment="cutmix"), Streams(0), PLAN, share=share)
