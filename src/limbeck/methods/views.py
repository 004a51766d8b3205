"""What methods that can give labels per view share: the two options, and the relabeling at their end."""

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, field_validator

from limbeck.data.views import split_mixing
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.labels.views import label_views
from limbeck.methods.problem import Problem
from limbeck.types.distilled import DistilledDataset

_SEED_BITS = 53  # a whole number that every JSON reader keeps exactly


class ViewOptions(BaseModel):
    """What every method that can give labels per view can be asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: int = Field(0, ge=0, description="augmented views with a label each; 0: one label for the plain image")
    view_augment: str = Field("resized_crop+flip+cutmix", description="how views are augmented; cutmix or mixup at the end mixes images")

    @field_validator("view_augment")
    @classmethod
    def _known(cls, text: str) -> str:
        split_mixing(text)
        return text


def check_views(rule: LabelRule, expert: bool, options: ViewOptions) -> None:
    """Raises `OptionError` when labels per view are asked for and cannot be made, `expert` being whether there is one."""
    if options.views and (rule.kind == "hard" or not expert):
        lacking = "hard labels" if rule.kind == "hard" else "no expert"
        raise OptionError(f"labels per view are an expert's soft labels, got views={options.views} with {lacking}; use --labels soft, or views=0")


def before_views(problem: Problem, options: ViewOptions) -> Problem:
    """The problem under which a set is made that `with_views` will label: where views are asked for, labels of the plain images are not worth making."""
    return replace(problem, rule=LabelRule(kind="hard")) if options.views else problem


def with_views(dataset: DistilledDataset, problem: Problem, options: ViewOptions) -> DistilledDataset:
    """The finished set under labels per view where they are asked for; the stream is ``views``."""
    if not options.views or problem.expert is None:
        return dataset
    seed = problem.streams.seed("views") >> (63 - _SEED_BITS)
    return label_views(dataset, problem.rule, problem.expert, views=options.views, augment=options.view_augment, seed=seed, plan=problem.plan)
