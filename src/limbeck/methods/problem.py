"""`Problem`: everything that a method may see. It holds no test split, so no method can select on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.splits import TestHandle
from limbeck.data.tables import ImageTable
from limbeck.errors import OptionError
from limbeck.experts.expert import Labeler
from limbeck.experts.trajectory import Trajectory
from limbeck.labels.rules import LabelRule
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


@dataclass(frozen=True)
class Problem:
    """Train and validation tables, the network to distil for, the expert, how labels are made, and how many images each class gets (`counts` [K]).

    `trajectories` are there for methods that match them or draw networks from them. `withheld` are training indices that a method may learn from but whose images it
    must not publish, whole or in part: an audit's canaries.
    """

    train: ImageTable
    validation: ImageTable
    network: Network
    pixels: PixelSpace
    counts: tuple[int, ...]
    rule: LabelRule
    recipe: Recipe
    streams: Streams
    plan: ExecutionPlan
    expert: Labeler | None = None
    trajectories: tuple[Trajectory, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    withheld: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, table in (("train", self.train), ("validation", self.validation)):
            if isinstance(table, TestHandle) or not isinstance(table, ImageTable):
                raise OptionError(f"a problem needs an image table as its {name} split, got {type(table).__name__}; the test split only measures")
        published = np.delete(self.train.labels, list(self.withheld)) if self.withheld else self.train.labels
        available = np.bincount(published, minlength=len(self.train.classes))
        for number, (wanted, has) in enumerate(zip(self.counts, available.tolist(), strict=True)):
            if wanted > has:
                raise OptionError(
                    f"class {self.train.classes[number]!r} has {has} training image{'s' if has != 1 else ''}, fewer than the {wanted} asked for; "
                    f"use --ipc {max(1, int(available.min()))}, or --ipc proportional"
                )

    @cached_property
    def expert_logits(self) -> Float[Tensor, "N K"]:
        """Logits of the expert on the whole training table, computed once; needs an expert."""
        if self.expert is None:
            raise OptionError("this selector scores images with an expert, but labels are hard and none was trained; use --selector random")
        return self.expert.logits(self.train, self.plan)

    def with_expert(self, expert: Labeler | None) -> "Problem":
        """The same problem under another expert."""
        return replace(self, expert=expert)

    def members(self, number: int) -> Int[Tensor, " n"]:
        """Training indices of class `number`, in table order."""
        return torch.from_numpy(np.flatnonzero(self.train.labels == number))

    def candidates(self, number: int) -> Int[Tensor, " n"]:
        """The members of class `number` whose images may be published."""
        members = self.members(number)
        return members[~torch.isin(members, torch.tensor(self.withheld))] if self.withheld else members
