"""The options of labels per view, shared by methods; random real images under them."""

import pytest
import torch
from pydantic import ValidationError
from tests.small import Oracle, distilled, gaussians, problem

from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.random_real import RandomReal, RandomRealOptions
from limbeck.methods.views import ViewOptions, before_views, check_views, with_views
from limbeck.streams import Streams

TABLE = gaussians(8, classes=3)
ORACLE = Oracle(TABLE, torch.zeros(24, 3))
SOFT = problem(TABLE, (2, 2, 2), rule=LabelRule(precision="float16"), expert=ORACLE)


def test_random_real_images_may_have_a_label_for_every_view() -> None:
    plain, viewed = (run_method(RandomReal(RandomRealOptions(views=views)), SOFT) for views in (0, 5))
    assert torch.equal(plain.images, viewed.images)
    assert plain.provenance == viewed.provenance
    assert (plain.views, plain.labels.views) == (None, None)
    assert viewed.views is not None
    assert (viewed.views.count, viewed.views.augment) == (5, "resized_crop+flip+cutmix")
    assert viewed.labels.expert == "oracle"
    assert viewed.bytes["labels"] == 5 * 6 * 3 * 2 + 6
    assert parse_method("random-real@cutmix-300").options.views == 300  # type: ignore[attr-defined]


def test_another_seed_shows_other_views() -> None:
    options = RandomRealOptions(views=2)
    specs = [run_method(RandomReal(options), problem(TABLE, (1, 1, 1), rule=LabelRule(), expert=ORACLE, streams=Streams(s))).views for s in (0, 0, 1)]
    assert specs[0] == specs[1] != specs[2]
    assert all(spec is not None and spec.seed < 2**53 for spec in specs)  # exact in every JSON reader


def test_views_need_soft_labels() -> None:
    hard = problem(TABLE, (1, 1, 1), expert=ORACLE)
    for given, lacking in ((hard, "hard labels"), (problem(TABLE, (1, 1, 1), rule=LabelRule()), "no expert")):
        with pytest.raises(
            OptionError, match=f"^labels per view are an expert's soft labels, got views=3 with {lacking}; use --labels soft, or views=0$"
        ):
            check_views(given.rule, given.expert is not None, ViewOptions(views=3))
        check_views(given.rule, given.expert is not None, ViewOptions())
    with pytest.raises(OptionError, match="^labels per view"):
        RandomReal(RandomRealOptions(views=1)).init(hard)


def test_without_views_nothing_changes() -> None:
    made = distilled(TABLE)
    assert before_views(SOFT, ViewOptions()) is SOFT
    assert with_views(made, SOFT, ViewOptions()) is made
    assert before_views(SOFT, ViewOptions(views=1)).rule.kind == "hard"


def test_augmentations_are_checked_when_they_are_named() -> None:
    with pytest.raises(OptionError, match="^unknown augmentation 'cropp'"):
        parse_method("random-real:view_augment=cropp")
    with pytest.raises(OptionError, match="^a view mixes images at most once"):
        ViewOptions(view_augment="cutmix+flip")
    with pytest.raises(ValidationError):
        ViewOptions(views=-1)
