"""`Recipe`: how a network is trained, as data. Free of torch, so that the command line's help is instant."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

#: Fields that came later: left out of records where they have their default, so that keys and files made before stay the same.
_LATER: dict[str, Any] = {"betas": (0.9, 0.999), "shuffle": True}


class Recipe(BaseModel):
    """One training run: optimizer, schedule, loss and augmentation. Exactly one of `epochs` and `steps` is set.

    `decay_at` holds fractions of the run after which the step schedule multiplies the learning rate by `decay`. The two last fields reproduce quirks of
    published code and are off in every corrected protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of Adam's two means")
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(256, ge=1)
    shuffle: bool = Field(True, description="a fresh order for every pass; without it, the order of the examples, and a batch of all is read once")
    epochs: int | None = Field(None, ge=0)
    steps: int | None = Field(None, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    decay_at: tuple[float, ...] = ()
    decay: float = Field(0.1, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, description="first steps, over which the rate rises linearly to lr")
    loss: Literal["cross-entropy", "kl", "mse"] = "cross-entropy"
    temperature: float = Field(1.0, gt=0, description="divides the logits in the KL loss")
    augment: str = "none"
    restart_momentum_at_decay: bool = Field(False, description="quirk: the optimizer is rebuilt at the decay, so momentum is lost")
    extra_epoch: bool = Field(False, description="quirk: the loop runs epochs + 1 times and decays after 0-based epoch E // 2 + 1")

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: Callable[[Any], Any]) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key not in _LATER or getattr(self, key) != _LATER[key]}

    @model_validator(mode="after")
    def _one_length(self) -> "Recipe":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a recipe needs exactly one of epochs and steps")
        return self

    def total_steps(self, examples: int) -> int:
        """Gradient steps of the whole run over `examples` training images (the last, smaller batch of an epoch counts as a step)."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return (self.epochs + self.extra_epoch) * self.steps_per_epoch(examples)

    def steps_per_epoch(self, examples: int) -> int:
        """Batches per pass over `examples` images."""
        return -(-examples // self.batch_size)

    def decay_steps(self, examples: int) -> list[int]:
        """Steps before which the step schedule decays: fraction x run length, in whole epochs where the run is counted in epochs."""
        if self.schedule != "step":
            return []
        if self.steps is not None:
            return [int(fraction * self.steps) for fraction in self.decay_at]
        assert self.epochs is not None
        late = 2 if self.extra_epoch else 0
        return [(int(fraction * self.epochs) + late) * self.steps_per_epoch(examples) for fraction in self.decay_at]

    def with_(self, **changes: Any) -> "Recipe":
        """A checked copy with some fields changed; setting `steps` clears `epochs` and the other way round."""
        if changes.get("steps") is not None:
            changes.setdefault("epochs", None)
        if changes.get("epochs") is not None:
            changes.setdefault("steps", None)
        return Recipe(**{**self.model_dump(), **changes})
