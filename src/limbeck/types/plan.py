"""`ExecutionPlan`: how the arithmetic of a training run is executed. Fixed when a task is planned and stored with it, so that digests hold on resume."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ExecutionPlan(BaseModel):
    """Device, strategy, models at once, precision, chunk and threads of a run.

    Two runs with equal plans on the same class of machine give equal bytes on CPU; across plans, students agree within the tolerance stated in
    ``docs/numerics.md``. `chunk` is the number of images that pass through the network at once; gradients of a batch are summed over its chunks, which is
    exact for networks without batch statistics and keeps activations inside the cache and the allocator's pool. With `models` above 1, that many networks of
    one architecture train as one vectorized program, and `chunk` counts the images of each. `lanes` chunks of a batch are worked on at the same time, each with
    `threads` threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "cpu"
    strategy: Literal["eager", "compiled"] = "eager"
    precision: Literal["float32", "bfloat16"] = "float32"
    models: int = Field(1, ge=1, description="networks that train as one program")
    lanes: int = Field(1, ge=1, description="chunks of a batch whose gradients are computed at the same time")
    chunk: int = Field(64, ge=0, description="images per forward pass; 0 means the whole batch")
    threads: int = Field(2, ge=1)
    reason: str = Field("", description="why this plan was chosen")
