"""`random-real`: real training images under an expert's soft labels. The soft-label baseline of Qin, Deng and Alvarez-Melis 2024 (arXiv 2406.10485)."""

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from limbeck.data.tables import Subset
from limbeck.labels.rules import make_labels
from limbeck.methods import SELECTORS
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.views import ViewOptions, before_views, check_views, with_views
from limbeck.types.distilled import DistilledDataset


class RandomRealOptions(ViewOptions):
    """``selector`` is a name of the table, with an argument behind a colon where it takes one: ``ce-quantile:3``."""

    selector: str = Field("random", description="random, herding, k-center or ce-quantile:0..9")


class RandomReal:
    """Chooses `counts[k]` real images of each class k and labels the un-augmented image once: ``y = softmax(z(x) / T)`` (Qin, Deng and Alvarez-Melis
    2024, arXiv 2406.10485, section 3.1). With ``views``, each image has a label for every augmented view of it, as SRe2L's images have: the authors'
    comparison of random images with that method.

    Cost: one forward pass of the expert over the chosen images or their views; selectors other than random need one over the training set. Deviation from
    the authors' code: the expert and its snapshot are chosen on validation, not on test.
    """

    Options = RandomRealOptions
    publishes: ClassVar[str] = "whole training images"
    label_default: ClassVar[str] = "soft"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {"cutmix-300": {"views": 300}}

    def __init__(self, options: RandomRealOptions) -> None:
        self.options = options
        name, _, argument = options.selector.partition(":")
        SELECTORS.check(name)
        self._selector, self._argument = name, argument or None

    def total_steps(self, problem: Problem) -> int:
        """Nothing is optimized."""
        return 0

    def work(self, size: Size) -> float:
        """A pass for every view; one of the training images where they are chosen by what an expert says of them."""
        return float(self.options.views * size.images + (0 if self._selector == "random" else size.train))

    def init(self, problem: Problem) -> State:
        """The state is the chosen training indices, class by class."""
        check_views(problem.rule, problem.expert is not None, self.options)
        select = SELECTORS[self._selector]
        return {"indices": torch.cat([select(problem, number, count, self._argument) for number, count in enumerate(problem.counts) if count])}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """There is nothing to improve: the state is final."""
        return state, {}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """Labels the chosen images."""
        indices = state["indices"].cpu()
        chosen = Subset(problem.train, np.asarray(indices))
        owners, rule = torch.from_numpy(chosen.labels.copy()), before_views(problem, self.options).rule
        soft = rule.kind == "soft" and problem.expert is not None
        logits = problem.expert.logits(chosen, problem.plan) if soft and problem.expert is not None else None
        made = DistilledDataset(
            images=chosen.read(range(len(chosen))),
            owners=owners,
            labels=make_labels(rule, owners, logits, len(chosen.classes), problem.expert.digest if soft and problem.expert else None),
            pixels=problem.pixels,
            classes=chosen.classes,
            recipe=problem.recipe,
            architecture=problem.network.spec.to_dict(),
            provenance={**problem.provenance, "indices": indices.tolist()},
        )
        return with_views(made, problem, self.options)
