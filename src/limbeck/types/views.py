"""`ViewSpec`: the augmented views that a set's labels were made for, as data. `limbeck.data.views` replays them."""

from pydantic import BaseModel, ConfigDict, Field


class ViewSpec(BaseModel):
    """`count` augmented views of every image of a set, each a function of `seed`, its number and the image alone.

    `augment` is the text of the augmentation; a ``cutmix`` or ``mixup`` at its end mixes every image with a partner from the whole set. `fingerprint` is a
    digest of the whole numbers that the first view draws: a program that draws others cannot replay the labels, and says so instead of training on
    labels of other pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0)
    count: int = Field(ge=1)
    augment: str
    fingerprint: str
