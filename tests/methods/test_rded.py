"""RDED: which parts are kept, where they go, and what an image costs."""

from typing import Any

import pytest
import torch
from tests.small import Oracle, gaussians, problem

from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import Turn, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.methods.rded import RDED, RDEDOptions, cut, draw_parts, rank_parts, stitch
from limbeck.streams import Streams

TABLE = gaussians(12, classes=2)


class Watching(Oracle):
    """Remembers how many images it was shown at a time."""

    def __init__(self, table: ArrayTable) -> None:
        super().__init__(table, torch.zeros(len(table), 2))
        self.shown: list[int] = []

    def logits_of(self, images: Any, pixels: Any, plan: Any) -> torch.Tensor:
        self.shown.append(len(images))
        return super().logits_of(images, pixels, plan)


def task(counts: tuple[int, int] = (3, 3), table: ArrayTable = TABLE, **changes: Any) -> Problem:
    return problem(table, counts, **{"rule": LabelRule(), "expert": Watching(table), **changes})


def entropy(given: Problem, images: torch.Tensor, number: int) -> torch.Tensor:
    """The oracle's cross-entropy of images for a class."""
    table = ArrayTable(images, [number] * len(images), given.train.classes)
    assert given.expert is not None
    return -given.expert.logits_of(table, given.pixels, given.plan).log_softmax(1)[:, number]


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_whole_images_are_chosen_by_the_experts_cross_entropy_alone() -> None:
    given = task()
    made = run_method(RDED(RDEDOptions(factor=1, scale=1, crops=1)), given)
    for number in (0, 1):
        members = TABLE.images[given.members(number)]
        best = members[entropy(given, members, number).argsort()[:3]]
        assert torch.equal(made.images[3 * number : 3 * number + 3], best)
    assert made.images.dtype == torch.uint8
    assert made.bytes["images"] == 6 * 64
    assert made.owners.tolist() == [0, 0, 0, 1, 1, 1]


def test_parts_are_better_than_whole_images_and_more_of_them_better_still() -> None:
    losses = []
    for crops in (1, 3, 20):
        state, metrics = RDED(RDEDOptions(factor=1, crops=crops)), {}
        given = task()
        _, metrics = state.step(given, state.init(given), Turn(0, 1.0, Streams(0)))
        losses.append(metrics["loss"])
    assert losses[0] > losses[1] > losses[2]


def test_only_the_pool_is_used() -> None:
    given = task((2, 2))
    made = run_method(RDED(RDEDOptions(factor=1, scale=1, crops=1, pool=2)), given)
    generator = given.streams["step", 0].torch("parts")
    pool = given.members(0)[torch.randperm(12, generator=generator)[:2]]
    assert rows(made.images[:2]) == rows(TABLE.images[pool])


def test_every_image_enters_with_its_best_part_first() -> None:
    losses = torch.tensor([[3.0, 1.0, 2.0], [0.5, 0.7, 9.0], [4.0, 4.0, 0.1]])
    assert rank_parts(losses).tolist() == [8, 3, 1, 4, 2, 6, 0, 7, 5]
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(7, 4, generator=generator)
    by_image = [sorted((float(losses[i, c]), i * 4 + c) for c in range(4)) for i in range(7)]
    expected = [number for turn in range(4) for _, number in sorted(parts[turn] for parts in by_image)]
    assert rank_parts(losses).tolist() == expected


def test_a_class_of_one_image_gives_several_parts_of_it() -> None:
    table = gaussians((9, 1))
    made = run_method(RDED(RDEDOptions(factor=2, crops=1)), task((1, 1), table))
    assert made.images.shape == (2, 1, 8, 8)
    single = table.images[table.labels == 1][0]
    assert made.images[1].min() >= single.min()
    assert made.images[1].max() <= single.max()


@pytest.mark.parametrize(("side", "first"), [((8, 8), (4, 4)), ((9, 7), (5, 4))])
def test_parts_fill_the_grid_in_order_of_rank(side: tuple[int, int], first: tuple[int, int]) -> None:
    height, width = side
    images = (torch.arange(8, dtype=torch.uint8) * 10)[:, None, None, None].expand(8, 2, height, width).contiguous()
    boxes = torch.tensor([[0, height, 0, width]]).expand(8, 4)
    made = stitch(images, boxes, 2)
    assert made.shape == (2, 2, height, width)
    rows, columns = first
    for number in range(2):
        quadrants = (
            made[number, :, :rows, :columns],
            made[number, :, :rows, columns:],
            made[number, :, rows:, :columns],
            made[number, :, rows:, columns:],
        )
        assert [part.unique().tolist() for part in quadrants] == [[10 * (number + 2 * k)] for k in range(4)]


def test_one_whole_part_is_the_image_itself() -> None:
    whole = torch.tensor([[0, 8, 0, 8]]).expand(5, 4)
    assert torch.equal(stitch(TABLE.images[:5], whole, 1), TABLE.images[:5])
    assert torch.equal(cut(TABLE.images[:5], whole, (8, 8)), TABLE.images[:5].float())


def test_a_patch_is_a_smoothed_part() -> None:
    """Halving a part with antialiasing keeps a linear ramp's values inside and its mean overall."""
    ramp = (4 * torch.arange(16, dtype=torch.uint8))[None, None, :, None].expand(1, 1, 16, 16)
    patch = cut(ramp, torch.tensor([[4, 12, 2, 14]]), (4, 4))
    assert torch.allclose(patch[0, 0, 1:3, 0], torch.tensor([26.0, 34.0]), atol=1e-3)
    assert patch.mean().item() == pytest.approx(30)
    assert torch.equal(patch[0, 0, :, :1].expand(4, 4), patch[0, 0])


def test_parts_have_the_images_ratio_and_at_least_the_least_area() -> None:
    parts = draw_parts(3000, (1, 40, 60), 0.25, torch.Generator().manual_seed(0)).double()
    height, width = parts[:, 1] - parts[:, 0], parts[:, 3] - parts[:, 2]
    assert (parts[:, 0].min(), parts[:, 2].min(), parts[:, 1].max(), parts[:, 3].max()) == (0, 0, 40, 60)
    assert (height.min(), width.min()) == (20, 30)
    assert ((height / 40 - width / 60).abs() <= 0.5 / 40 + 0.5 / 60).all()
    area = height * width / 2400
    assert abs(area.mean() - 0.625) < 5 * 0.75 / (12 * 3000) ** 0.5 + 0.005  # U(1/4, 1), up to the rounding of sides
    assert draw_parts(9, (1, 3, 3), 0.01, torch.Generator()).diff(dim=1)[:, ::2].min() == 1


def test_the_expert_sees_at_most_256_patches_at_once() -> None:
    given = task((20, 20), gaussians(110))
    run_method(RDED(RDEDOptions(factor=1)), given)
    # 110 images of each class, five parts each; then the finished images
    assert given.expert.shown == [256, 256, 38, 256, 256, 38, 40]  # type: ignore[union-attr]


def test_classes_whose_turn_has_not_come_show_real_images() -> None:
    given, method = task((2, 2)), RDED(RDEDOptions(factor=2))
    assert method.total_steps(given) == 2
    assert method.total_steps(task((0, 2))) == 1
    state, _ = method.step(given, method.init(given), Turn(0, 1.0, Streams(0)))
    made = method.finish(given, state)
    assert rows(made.images[2:]) < rows(TABLE.images)
    assert not rows(made.images[:2]) & rows(TABLE.images)


def test_labels_are_of_the_stitched_images_once_or_for_each_view() -> None:
    given = task()
    once = run_method(RDED(RDEDOptions()), given)
    assert (once.labels.kind, once.labels.views) == ("probability", None)
    assert torch.allclose(once.targets()[0, 0].log(), -entropy(given, once.images[:1], 0)[0], atol=1e-5)
    many = run_method(RDED(RDEDOptions(views=4, view_augment="flip+cutmix")), given)
    assert torch.equal(many.images, once.images)
    assert (many.labels.kind, many.labels.views) == ("logit", 4)
    assert many.bytes["labels"] == 4 * 6 * 2 * 4 + 6


def test_what_cannot_be_made_is_answered() -> None:
    with pytest.raises(OptionError, match="^rded scores parts of images with an expert, got none; give the problem an expert$"):
        RDED(RDEDOptions()).init(problem(TABLE, (1, 1)))
    with pytest.raises(OptionError, match="^rded puts factor x factor patches into an image of 8x8 pixels, got factor=9; use factor=1 or 2$"):
        RDED(RDEDOptions(factor=9)).init(task())


def test_published_settings() -> None:
    for name, factor in (("imagenet-1k", 2), ("tiny-imagenet", 1), ("cifar100", 1), ("cifar10", 1)):
        options = parse_method(f"rded@{name}").options
        assert (options.factor, options.crops, options.pool, options.scale) == (factor, 5, 300, 0.08)  # type: ignore[attr-defined]
    assert all(parse_method(f"rded@{name}") for name in RDED.recipes)
