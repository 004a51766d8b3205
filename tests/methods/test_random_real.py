import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.small import Oracle, gaussians, problem

from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import run_method
from limbeck.methods.random_real import RandomReal, RandomRealOptions
from limbeck.streams import Streams

TABLE = gaussians(12, classes=3)
LOGITS = torch.from_numpy(np.random.default_rng(0).normal(size=(36, 3))).float()
ORACLE = Oracle(TABLE, LOGITS)


def test_images_are_real_and_labels_are_the_experts() -> None:
    made = run_method(RandomReal(RandomRealOptions()), problem(TABLE, (2, 3, 1), rule=LabelRule(temperature=2.0), expert=ORACLE))
    chosen = made.provenance["indices"]
    assert torch.equal(made.images, TABLE.images[chosen])
    assert made.owners.tolist() == TABLE.labels[chosen].tolist() == [0, 0, 1, 1, 1, 2]
    assert torch.allclose(made.targets(), (LOGITS[chosen] / 2).softmax(1), atol=1e-6)
    assert (made.labels.expert, made.labels.temperature) == ("oracle", 2.0)
    assert made.architecture == {"name": "softmax", "options": {}}


def test_budgets_nest_and_a_class_may_get_none() -> None:
    sets = [run_method(RandomReal(RandomRealOptions()), problem(TABLE, counts)).provenance["indices"] for counts in ((1, 1, 1), (5, 5, 5), (0, 4, 0))]
    assert set(sets[0]) < set(sets[1])
    assert set(sets[2]) < set(sets[1])


def test_hard_labels_need_no_expert_and_use_none() -> None:
    made = run_method(RandomReal(RandomRealOptions(selector="ce-quantile:3")), problem(TABLE, (2, 2, 2), expert=ORACLE))
    assert (made.labels.kind, made.labels.expert) == ("hard", None)
    with pytest.raises(OptionError, match="^soft labels need an expert, got none"):
        run_method(RandomReal(RandomRealOptions()), problem(TABLE, (1, 1, 1), rule=LabelRule()))


def test_another_image_draw_keeps_the_labels_rule() -> None:
    one, other = (
        run_method(RandomReal(RandomRealOptions()), problem(TABLE, (3, 3, 3), rule=LabelRule(), expert=ORACLE, streams=Streams(0)["draw", draw]))
        for draw in (0, 1)
    )
    assert one.provenance["indices"] != other.provenance["indices"]
    assert one.labels.header() == other.labels.header()


def test_unknown_selectors_and_options_are_answered() -> None:
    with pytest.raises(OptionError, match="^unknown selector 'herd'; did you mean 'herding'\\? known: ce-quantile, herding, k-center, random$"):
        RandomReal(RandomRealOptions(selector="herd"))
    with pytest.raises(ValidationError, match="select"):
        RandomRealOptions(select="random")  # type: ignore[call-arg]
